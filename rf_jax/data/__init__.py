"""Pictures and texts to rows of integers: sources, tokenizer, layout, packing (no jax)."""

"""From images and text to batches of integers: sources, tokenizer, layout, packing (no jax)."""

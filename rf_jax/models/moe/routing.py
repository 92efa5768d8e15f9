"""Which experts each token goes to, and how balanced that is (Qwen3's router; losses per row)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routes(NamedTuple):
    """Routes of tokens [B, n] to k of E experts."""

    experts: jax.Array  # int32 [B, n, k]; E where the token is padding
    weights: jax.Array  # float32 [B, n, k], sum 1
    balance: jax.Array  # float32 [B, n]: the balance loss of the token's row, k if even
    z: jax.Array  # float32 [B, n]: logsumexp(logits)^2


def top_k(logits: jax.Array, live: jax.Array, k: int) -> Routes:
    """Softmax over E, the k largest, normalised to sum 1 (Qwen3).

    logits float32 [B, n, E], live bool [B, n]: tokens that are not padding. The balance loss is
    E sum_e f_e P_e, f_e the assignments to expert e per token (they sum to k) and P_e its mean
    probability, as in Hugging Face's `load_balancing_loss_func`, so coefficients mean the same.
    It is computed over the live tokens of a row in one layer. Unlike a loss per batch, it does not
    depend on gradient accumulation, hosts or mesh; unlike Hugging Face's, over the tokens of all
    layers together, imbalances of different layers cannot cancel.
    """
    experts = logits.shape[-1]
    probabilities = jax.nn.softmax(logits, -1)
    weights, chosen = jax.lax.top_k(probabilities, k)
    weights = weights / weights.sum(-1, keepdims=True)
    alive = live[..., None].astype(jnp.float32)
    count = jnp.maximum(alive.sum(1), 1.0)
    assigned = jax.nn.one_hot(chosen, experts).sum(2) * alive
    per_token = jax.lax.stop_gradient(assigned.sum(1)) / count
    balance = experts * jnp.sum(per_token * (probabilities * alive).sum(1) / count, -1)
    return Routes(
        jnp.where(live[..., None], chosen, experts),
        weights,
        jnp.broadcast_to(balance[:, None], live.shape),
        jax.nn.logsumexp(logits, -1) ** 2,
    )

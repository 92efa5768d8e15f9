"""Who sees whom, rotary positions, and the attention product. Sources: design rule 2 and Qwen3."""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a query that sees nothing gives a mean instead of NaN


def visible(query: dict[str, jax.Array], key: dict[str, jax.Array]) -> jax.Array:
    """bool [B, Lq, Lk] from int32 [B, Lq] and [B, Lk] arrays segment, order, reach, block.

    Padding has segment 0, order `never` and reach -1: it sees nothing and nothing sees it.
    """
    same = query['segment'][:, :, None] == key['segment'][:, None]
    before = key['order'][:, None] <= query['reach'][:, :, None]
    block = query['block'][:, :, None]
    together = (block == key['block'][:, None]) & (block > 0)
    return same & (before | together)


def rotary_angles(position: jax.Array, head_dim: int, sections, theta: float) -> jax.Array:
    """float32 [..., head_dim / 2] angles of positions float32 [..., 3] (order, row, column).

    Frequency j is theta^(-2j / head_dim) as in a one-coordinate rotary embedding, and turns by one
    of the coordinates; `sections` says how many frequencies each gets, dealt out in turn so that
    each coordinate has fast and slow ones. Equal coordinates (text) give the one-coordinate angles.
    """
    half = head_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) * 2 / head_dim)
    return position[..., jnp.array(_deal(sections, half))] * frequency


def _deal(sections, half: int) -> list[int]:
    """Coordinate of each frequency: the one that lags most behind its share comes next."""
    given = [0, 0, 0]
    order = []
    for j in range(half):
        lag = [section * (j + 1) / half - got for section, got in zip(sections, given)]
        coordinate = lag.index(max(lag))
        given[coordinate] += 1
        order.append(coordinate)
    return order


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates [B, L, H, Dh] by float32 angles [B, L, Dh / 2]; halves are paired as in Qwen3."""
    cos = jnp.cos(angles)[:, :, None]
    sin = jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention by the mask, softmax in float32; the reference form.

    q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh], mask bool [B, Lq, Lk] -> [B, Lq, H, Dh].
    """
    rows, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # Query heads of a group stand after one another, so that each product has one batch axis less
    # and reads k and v once: twice as fast as five-letter einsums in XLA's backward on CPU.
    q = q.reshape(rows, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(rows, kv_heads, group * length, head_dim)
    logits = jnp.einsum('bkqd,bskd->bkqs', q, k, preferred_element_type=jnp.float32)
    mask = jnp.tile(mask, (1, group, 1))[:, None]
    weights = jax.nn.softmax(jnp.where(mask, logits * head_dim**-0.5, MASKED), axis=-1)
    out = jnp.einsum('bkqs,bskd->bkqd', weights.astype(v.dtype), v)
    out = out.reshape(rows, kv_heads, group, length, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, length, heads, head_dim)

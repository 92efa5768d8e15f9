"""The attention mask: of tokens, and of tiles (blocks of queries x blocks of keys).

Key k is visible to query q when
    segment[q] == segment[k] and (order[k] <= reach[q] or (block[q] == block[k] and block[q] > 0)).

`segment` is the example within the packed row, `order` the place in the example, `reach` the last
order that a token attends to, and `block` marks tokens that all attend to each other. A row of two
words, a representation token and two noisy pixel patches of the same image:

    token     segment   order   reach   block
    red             1       0       0       0
    apple           1       1       1       0
    code            1       2       2       0
    noise_0         1   NEVER       2       1
    noise_1         1   NEVER       2       1

gives this mask (rows are queries, columns are keys, x is visible):

              red  apple  code  noise_0  noise_1
    red        x     .      .      .        .
    apple      x     x      .      .        .
    code       x     x      x      .        .
    noise_0    x     x      x      x        x
    noise_1    x     x      x      x        x

Text and representation are causal. Pixels see all of them and each other, and nothing else sees
pixels: no reach covers NEVER. A pixel that drops the representation (guidance) has reach 1.

Most tiles of a long packed row have no visible pair; implementations whose memory is linear in the
length of the row skip them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rf_jax.data.layout import NEVER

FIELDS = ('segment', 'order', 'reach', 'block')
SLOTS = 512  # examples, and images, of a row that tiles are distinguished by
MASKED = -1e30  # finite, so that a query that sees nothing gives a number instead of NaN
PADDING = {'segment': 0, 'order': NEVER, 'reach': -1, 'block': 0}

Integers = Mapping[str, jax.Array]  # int32 [B, L] by the names of FIELDS, numpy or jax


def rule(query: Integers, key: Integers):
    """The rule, bool: which keys are visible to which queries, for integers that broadcast."""
    same = query['segment'] == key['segment']
    before = key['order'] <= query['reach']
    together = (query['block'] == key['block']) & (query['block'] > 0)
    return same & (before | together)


def visible(query: Integers, key: Integers) -> jax.Array:
    """bool [B, Lq, Lk] from int32 [B, Lq] and [B, Lk] arrays segment, order, reach, block.

    Padding has segment 0, order NEVER and reach -1: it sees nothing and nothing sees it.
    """
    queries = {name: query[name][:, :, None] for name in FIELDS}
    return rule(queries, {name: key[name][:, None] for name in FIELDS})


def blocks(length: int, block: int) -> int:
    """How many blocks hold `length` tokens; the last may be part empty."""
    return -(-length // block)


def filled(integers: Integers, block: int) -> dict[str, jax.Array]:
    """The integers with padding tokens up to a multiple of `block`."""
    length = integers['segment'].shape[1]
    extra = blocks(length, block) * block - length
    xp = integers['segment'].__array_namespace__()
    return {
        name: xp.pad(integers[name], ((0, 0), (0, extra)), constant_values=PADDING[name])
        for name in FIELDS
    }


def tiles(query: Integers, key: Integers, block_q: int, block_k: int):
    """bool [B, ceil(Lq / block_q), ceil(Lk / block_k)]: False where no pair of the tile is visible.

    True where one is; also in a few other tiles, if a row has more than SLOTS examples or images.
    Takes numpy arrays as well as jax ones and gives the same kind.
    """
    xp = query['segment'].__array_namespace__()

    def in_blocks(integers, size):
        shape = (integers['segment'].shape[0], -1, size, 1)
        return {name: x.reshape(shape) for name, x in filled(integers, size).items()}

    def slots(x):
        return x % SLOTS == xp.arange(SLOTS)

    query, key = in_blocks(query, block_q), in_blocks(key, block_k)
    # A segment's farthest reach in the queries' block and its first order in the keys': [B, n, S].
    reach = xp.where(slots(query['segment']), query['reach'], -1).max(2)
    order = xp.where(slots(key['segment']), key['order'], NEVER).min(2)
    queries_block, keys_block = (
        (slots(x['block']) & (x['block'] > 0)).any(2) for x in (query, key)
    )
    before = order[:, None] <= reach[:, :, None]
    return (before | (keys_block[:, None] & queries_block[:, :, None])).any(-1)


def tile_list(may_see: jax.Array) -> dict[str, jax.Array]:
    """Tiles [B, n, m] as a list for each row, ordered by n, then m.

    `at` int32 [B, n m]: tile (i, j) as i << 16 | j, repeating the last; `count` int32 [B]. Each of
    the n is there at least once, so that a kernel that walks the list writes all of its output.
    """
    may_see = jnp.asarray(may_see)
    rows, _, minor = may_see.shape
    may_see = may_see.at[:, :, 0].set(may_see[:, :, 0] | ~may_see.any(2)).reshape(rows, -1)
    index = jnp.argsort(~may_see, axis=1, stable=True)
    count = may_see.sum(1, dtype=jnp.int32)
    place = jnp.minimum(jnp.arange(index.shape[1]), count[:, None] - 1)
    index = jnp.take_along_axis(index, place, axis=1)
    return {'at': (index // minor << 16 | index % minor).astype(jnp.int32), 'count': count}

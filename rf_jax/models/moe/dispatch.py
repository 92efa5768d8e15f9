"""Which experts each token goes to (Qwen3's router), the way there, and the way back: sorted on a
device, all-to-all between devices, none dropped.

A *slot* is a row of a buffer for one (token, expert) pair. With experts sharded over `ways`
devices, each device sends `capacity` slots at a time to each device; pairs beyond that go in
further rounds, as many as the most loaded device needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


class Slots(NamedTuple):
    """Both directions of the map between S tokens and M slots; -1: none."""

    token: jax.Array  # int32 [M]
    slot: jax.Array  # int32 [S, k]


@jax.custom_vjp
def dispatch(x: jax.Array, slots: Slots) -> jax.Array:
    """Tokens [S, D] to slots [M, D], zero where empty. The transpose of `combine`."""
    # Appends a row of zeros, since masking M rows would cost a pass over them.
    x = jnp.pad(x, ((0, 1), (0, 0)))
    return x[jnp.where(slots.token >= 0, slots.token, x.shape[0] - 1)]


@jax.custom_vjp
def combine(rows: jax.Array, slots: Slots) -> jax.Array:
    """Slots [M, D] to tokens [S, D]: sums the slots of each token. The transpose of `dispatch`."""
    found = jnp.where((slots.slot >= 0)[..., None], rows[jnp.maximum(slots.slot, 0)], 0)
    return found.sum(1)


# Each is the transpose of the other, so neither needs a scatter in the backward pass.
dispatch.defvjp(lambda x, s: (dispatch(x, s), s), lambda s, g: (combine(g, s), None))
combine.defvjp(lambda rows, s: (combine(rows, s), s), lambda s, g: (dispatch(g, s), None))


class Sorted(NamedTuple):
    """The n = S k pairs of a device, sorted by expert."""

    order: jax.Array  # int32 [n]: pair at each rank
    rank: jax.Array  # int32 [n]: rank of each pair
    start: jax.Array  # int32 [ways]: first rank of each device's experts
    count: jax.Array  # int32 [ways]: pairs for each device


def inverse(order: jax.Array) -> jax.Array:
    """The permutation int32 [n] that undoes `order`."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))


def sort(experts: jax.Array, ways: int, each: int) -> Sorted:
    """Pairs int32 [S, k] by expert; device d holds experts d * each to (d + 1) * each - 1."""
    flat = experts.reshape(-1)
    order = jnp.argsort(flat).astype(jnp.int32)
    count = jnp.bincount(flat // each, length=ways)  # padding is beyond the last device
    return Sorted(order, inverse(order), jnp.cumsum(count) - count, count)


def local(feed_forward, weights, x, experts, mix, count: int) -> jax.Array:
    """All `count` experts on this device: x [S, D], experts int32 [S, k], mix [S, k] -> [S, D]."""
    k = experts.shape[1]
    pairs = sort(experts, 1, count)
    sizes = jnp.bincount(experts.reshape(-1), length=count).astype(jnp.int32)
    filled = jnp.arange(experts.size) < sizes.sum()  # padding is last and has no slot
    slots = Slots(
        jnp.where(filled, pairs.order // k, -1),
        jnp.where(experts < count, pairs.rank.reshape(-1, k), -1),
    )
    return combine(
        feed_forward(*weights, dispatch(x, slots), mix.reshape(-1)[pairs.order], sizes), slots
    )


def all_to_all(
    feed_forward, weights, x, experts, mix, count: int, *, axis, axes, capacity_factor
) -> jax.Array:
    """As `local`, within shard_map, with `count` experts sharded over the mesh axis `axis`.

    `weights` are those of the experts of this device. `axes`: all manual axes, which run the same
    number of rounds. `capacity_factor`: slots per round, relative to an even load.
    """
    ways = jax.lax.axis_size(axis)
    capacity = -(-int(capacity_factor * experts.size) // ways)
    capacity = min(-(-capacity // 8) * 8, -(-experts.size // 8) * 8)
    pairs = sort(experts, ways, count // ways)
    one = Round(feed_forward, axis, ways, count // ways, capacity)
    first = one(0, (weights, x, mix), experts, pairs)
    if capacity >= experts.size:  # the first round has room for all pairs
        return first
    needed = jax.lax.pmax(-(-pairs.count.max() // capacity), axes)
    return first + _further(one, needed, (weights, x, mix), experts, pairs)


@dataclass(frozen=True)
class Round:
    """One exchange of at most `capacity` slots between each two devices; its static parameters."""

    feed_forward: Callable
    axis: str
    ways: int  # devices along the axis
    each: int  # experts of a device
    capacity: int

    def __call__(self, number, arguments, experts, pairs: Sorted) -> jax.Array:
        """Contribution of the pairs of round `number` to the tokens [S, D]."""
        weights, x, mix = arguments
        k, flat = experts.shape[1], experts.reshape(-1)
        place = number * self.capacity + jnp.arange(self.capacity)  # among the pairs for a device
        there = place < pairs.count[:, None]
        pair = pairs.order[jnp.where(there, pairs.start[:, None] + place, 0)]
        device = jnp.minimum(flat // self.each, self.ways - 1)
        at = pairs.rank - pairs.start[device] - number * self.capacity
        kept = (at >= 0) & (at < self.capacity) & (flat < self.each * self.ways)
        slots = Slots(
            jnp.where(there, pair // k, -1).reshape(-1),
            jnp.where(kept, device * self.capacity + at, -1).reshape(-1, k),
        )
        label = jnp.where(there, flat[pair] % self.each, self.each)  # the last: empty
        mix = mix.reshape(-1)[pair].reshape(-1)
        return combine(self._visit(weights, dispatch(x, slots), mix, label.reshape(-1)), slots)

    def _visit(self, weights, rows: jax.Array, mix: jax.Array, label: jax.Array) -> jax.Array:
        """Sends slots [ways * capacity, D] to the devices of their experts, and back."""
        send = partial(
            jax.lax.all_to_all, axis_name=self.axis, split_axis=0, concat_axis=0, tiled=True
        )
        rows, mix, label = send(rows), send(mix), send(label)
        order = jnp.argsort(label).astype(jnp.int32)
        back = inverse(order)
        sizes = jnp.bincount(label, length=self.each).astype(jnp.int32)
        rows = dispatch(rows, Slots(order, back[:, None]))
        y = self.feed_forward(*weights, rows, mix[order], sizes)
        return send(dispatch(y, Slots(back, order[:, None])))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _further(one: Round, needed, arguments, experts, pairs):
    """Sum of rounds 1 .. needed - 1, usually none."""
    return _loop(needed, lambda number: one(number, arguments, experts, pairs))


def _loop(needed, term):
    def add(carry):
        number, total = carry
        return number + 1, jax.tree.map(jnp.add, total, term(number))

    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(term, 1))
    return jax.lax.while_loop(lambda carry: carry[0] < needed, add, (1, zero))[1]


def _further_forward(one, needed, arguments, experts, pairs):
    kept = needed, arguments, experts, pairs
    return _further(one, *kept), kept


def _further_backward(one, kept, gradient):
    needed, arguments, experts, pairs = kept

    def term(number):  # a loop of unknown length cannot save activations: recompute
        return jax.vjp(lambda a: one(number, a, experts, pairs), arguments)[1](gradient)[0]

    return None, _loop(needed, term), None, None


_further.defvjp(_further_forward, _further_backward)

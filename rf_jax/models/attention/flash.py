"""What the FlashAttention kernels share: a backward pass that recomputes the logits."""

from collections.abc import Callable
from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name


def differentiable(forward: Callable, backward: Callable) -> Callable:
    """`forward(sizes, q, k, v, prepared) -> (out, log-sum-exp)` as a function of the same arguments
    that gives `out`. Its gradient is `backward(sizes, kept, g) -> (dq, dk, dv, None)`, where `kept`
    are q, k, v, prepared, out and the log-sum-exp.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def attend(sizes, q, k, v, prepared):
        return forward(sizes, q, k, v, prepared)[0]

    def keep(sizes, q, k, v, prepared):
        # Named for remat policies: if saved, the backward pass need not run the kernel again.
        out, lse = checkpoint_name(forward(sizes, q, k, v, prepared), 'attended')
        return out, (q, k, v, prepared, out, lse)

    attend.defvjp(keep, backward)
    return attend

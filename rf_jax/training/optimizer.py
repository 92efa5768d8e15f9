"""AdamW as in the paper (section 4.1): clipping, warm-up then constant, multipliers by path."""

import re
from collections.abc import Sequence

import jax
import optax

from rf_jax.runtime.errors import UserError
from rf_jax.runtime.sharding import path_name

# Parameters with weight decay: matrices, tables and adapters, not norms, biases, layer scales.
DECAYED = ('kernel', 'table', 'class_and_registers', 'router', 'gate', 'up', 'down', 'a', 'b')


def paths(tree) -> list[str]:
    """'/'-joined path of every leaf, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _by_path(tree, value_of):
    """A tree like `tree` with `value_of(path)` at each leaf."""
    return jax.tree.unflatten(jax.tree.structure(tree), [value_of(p) for p in paths(tree)])


def lr_multipliers(params, multipliers: Sequence[tuple[str, float]], freeze: Sequence[str]):
    """Tree of learning-rate factors: 0 if frozen, else that of the first matching rule, else 1.

    Raises UserError for a rule that matches no parameter, which would silently do nothing, and for
    one that is not a pair or not a regular expression.
    """
    names = paths(params)
    rules = [('optimizer.freeze', pattern, 0.0) for pattern in freeze]
    try:
        rules += [
            ('optimizer.lr_multipliers', pattern, float(factor)) for pattern, factor in multipliers
        ]
    except (TypeError, ValueError):
        raise UserError(
            f'optimizer.lr_multipliers={multipliers!r}: expected pairs (regex, factor); as a flag: '
            '--config.optimizer.lr_multipliers="((\'^backbone/\', 4.0),)"'
        ) from None
    for field, pattern, _ in rules:
        if not any(matches(field, pattern, name) for name in names):
            raise UserError(
                f'{field} has {pattern!r}, which matches no parameter; paths look like '
                f'{names[0]!r} (see parameters.txt in the workdir)'
            )

    def factor(path):
        return next((value for _, pattern, value in rules if re.search(pattern, path)), 1.0)

    return _by_path(params, factor)


def stop_frozen_gradients(params, freeze: Sequence[str]):
    """`params` with stop_gradient on the frozen ones, whose gradients are then not computed."""

    def stop(path, leaf):
        return jax.lax.stop_gradient(leaf) if frozen(path, freeze) else leaf

    leaves = map(stop, paths(params), jax.tree.leaves(params))
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves))


def frozen(path: str, freeze: Sequence[str]) -> bool:
    """Whether any of the patterns matches the path. Raises UserError for an invalid pattern."""
    return any(matches('optimizer.freeze', pattern, path) for pattern in freeze)


def matches(field: str, pattern: str, path: str) -> bool:
    """Whether a pattern of a config field matches a path. Raises UserError if it is invalid."""
    try:
        return bool(re.search(pattern, path))
    except re.error as error:
        raise UserError(
            f'{field} has {pattern!r}, which is not a regular expression: {error}'
        ) from None


def schedule(config, steps: int) -> optax.Schedule:
    """Linear warm-up, from 1 / warmup of the learning rate at the first step, then constant.

    With `decay_steps` it falls linearly at the end, to 1 / decay of it at the last of the `steps`.
    Skipped steps do not count: after some, it ends so many steps earlier in the decay.
    """
    peak, warmup, decay = config.learning_rate, config.warmup_steps, config.decay_steps

    def rate(count):
        part = jax.numpy.minimum(1.0, (count + 1) / max(warmup, 1))
        if decay:
            part *= jax.numpy.clip((steps - count) / decay, 0.0, 1.0)
        return peak * part

    return rate


def build(config, params, steps: int) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`, for `steps`; only the paths of `params` matter."""
    factors = lr_multipliers(params, config.lr_multipliers, config.freeze)
    decayed = _by_path(params, lambda path: path.split('/')[-1] in DECAYED)

    def scaled(tree):
        # Frozen parameters have factor 0: no update, no weight decay, no part in the gradient norm.
        return jax.tree.map(lambda x, f: x * f, tree, factors)

    live = jax.tree.map(lambda f: float(f > 0), factors)
    keep_live = optax.stateless(lambda u, _: jax.tree.map(lambda x, f: x * f, u, live))
    return optax.chain(
        keep_live,
        optax.clip_by_global_norm(config.grad_clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.stateless(lambda u, _: scaled(u)),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )

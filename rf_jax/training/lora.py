"""Low-rank adapters (LoRA, arXiv 2106.09685) of a frozen model.

A kernel W [..., D, F] is used as W + alpha / rank * a @ b. The factors a [..., D, r] and
b [..., r, F] are trained, W is not; leading axes, of layers and experts, have factors of their own.

The trained parameters are a tree like the model's: {'a', 'b'} in place of an adapted kernel, and
the parameters that are trained in full. `base` is the model's tree without the latter.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from rf_jax.runtime.errors import UserError, require
from rf_jax.runtime.rng import random_key
from rf_jax.training import optimizer

KERNELS = ('kernel', 'router', 'gate', 'up', 'down')  # names of matrices; the last three: experts
FACTORS = ('a', 'b')
SMALL = r'/[ab]$'  # factors may be replicated


def enabled(config: ConfigDict) -> bool:
    """Whether a run trains adapters; False for older configs without the field."""
    return config.get('lora', {}).get('rank', 0) > 0


def check(config: ConfigDict) -> None:
    """Raises UserError for fields of `config.lora` that cannot work with any model."""
    c = config.lora
    for name in ('targets', 'full'):
        for pattern in c[name]:
            optimizer.matches(f'lora.{name}', pattern, '')  # raises unless it is a regex
    if not enabled(config):
        return
    require(
        config.initialise_from,
        f'lora.rank={c.rank} needs initialise_from, the weights that stay frozen',
    )
    require(
        c.targets or c.full,
        f'lora.rank={c.rank} but lora.targets and lora.full are empty: nothing would be trained',
    )


def is_adapter(path: str) -> bool:
    """Whether a path is that of a factor."""
    return path.rpartition('/')[2] in FACTORS


def split(config: ConfigDict, params: Any) -> tuple[dict, dict]:
    """(trained, base) of newly initialised parameters of a whole model, arrays or tracers.

    b is zero, so that training starts from the base. Raises UserError for `config.lora` if it does
    not fit the model.
    """
    whole = traverse_util.flatten_dict(params, sep='/')
    adapted, full = _chosen(config.lora, whole)
    trained = {path: whole[path] for path in full}
    for path in adapted:
        *leading, width, features = whole[path].shape
        rank, limit = config.lora.rank, 1 / math.sqrt(width)
        key = random_key(config.seed, f'adapter of {path}')
        trained[f'{path}/a'] = jax.random.uniform(
            key, (*leading, width, rank), minval=-limit, maxval=limit
        )
        trained[f'{path}/b'] = jnp.zeros((*leading, rank, features))
    base = {path: leaf for path, leaf in whole.items() if path not in full}
    return tuple(traverse_util.unflatten_dict(tree, sep='/') for tree in (trained, base))


def scale_of(config: ConfigDict) -> float:
    """The factor of a @ b."""
    return config.lora.alpha / config.lora.rank


def merged(base: Mapping, trained: Mapping, scale: float) -> dict:
    """The parameters of the whole model: adapted kernels in the dtype of the base, computed in
    float32. Differentiable.
    """
    own = traverse_util.flatten_dict(trained, sep='/')
    whole = {path: leaf for path, leaf in own.items() if not is_adapter(path)}
    for path, leaf in traverse_util.flatten_dict(base, sep='/').items():
        if f'{path}/a' in own:
            a, b = own[f'{path}/a'], own[f'{path}/b']
            change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            leaf = (leaf.astype(change.dtype) + scale * change).astype(leaf.dtype)
        whole[path] = leaf
    return traverse_util.unflatten_dict(whole, sep='/')


def sharding_rows(base: Mapping, trained: Mapping, table: Iterable) -> list[tuple[str, tuple]]:
    """Rows of a sharding table for the factors, derived from those of their kernels in `table`.

    A factor is sharded as the dimensions that it shares with its kernel, so that a @ b is computed
    in the shards of the kernel, without communication.
    """
    rows = []
    own = traverse_util.flatten_dict(trained, sep='/')
    for path, leaf in traverse_util.flatten_dict(base, sep='/').items():
        axes = next((row[1] for row in table if re.search(row[0], path)), ())
        if f'{path}/a' not in own or not axes:
            continue
        *leading, first, last = (*(None,) * (leaf.ndim - len(axes)), *axes)
        rows.append((f'{re.escape(path)}/a$', (*leading, first, None)))
        rows.append((f'{re.escape(path)}/b$', (*leading, None, last)))
    return rows


def _chosen(c: ConfigDict, shapes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(paths of adapted kernels, paths trained in full). Raises UserError."""
    full = _matched('lora.full', c.full, shapes, 'parameter')
    kernels = [path for path in shapes if path.rpartition('/')[2] in KERNELS]
    adapted = [p for p in _matched('lora.targets', c.targets, kernels, 'kernel') if p not in full]
    for path in adapted:
        side = min(shapes[path].shape[-2:])
        require(
            c.rank <= side,
            f'lora.rank={c.rank} is larger than a side of {path} {list(shapes[path].shape)}: '
            f'expected at most {side}, or lora.targets without it',
        )
    return adapted, full


def _matched(field: str, patterns: Sequence[str], paths: Iterable[str], what: str) -> list[str]:
    """The paths that any of the patterns matches. Raises UserError for a pattern without any."""
    paths = list(paths)
    for pattern in patterns:
        if not any(optimizer.matches(field, pattern, path) for path in paths):
            raise UserError(
                f'{field} has {pattern!r}, which matches no {what}; one is {paths[0]!r}'
            )
    return [path for path in paths if any(re.search(pattern, path) for pattern in patterns)]

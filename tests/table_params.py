"""Our parameters from tensors of an original, by the table of its family."""

import re

import numpy as np

from rf_jax.interop import table
from rf_jax.interop.family import Family


def params_of(family: Family, config, tensors) -> dict:
    """A tree; checks that every tensor is used or declared unused."""
    rows, sizes = family.rows(config, tensors.keys()), family.sizes(config)
    used = {name for row in rows for _, name in row.names(sizes)}
    left = [name for name in tensors if name not in used]
    assert all(re.search('|'.join(family.unused), name) for name in left), left
    tree: dict = {}
    for path, leaf in table.leaves(rows, sizes).items():
        *above, name = path.split('/')
        at = tree
        for part in above:
            at = at.setdefault(part, {})
        whole = (slice(None),) * len(leaf.shape)
        at[name] = leaf.read(whole, tensors.__getitem__, np.dtype(np.float32))
    return tree

"""Parts of the arrays of a checkpoint, for arrays that no host should hold whole."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore

from rf_jax.runtime import buckets, checkpoint_files, checkpoint_folder, paths, storage
from rf_jax.runtime.errors import Unavailable, UserError

CACHE = 4_000_000_000  # bytes of stored chunks kept, since slices of one share it


class Slices:
    """An array on disk: `slices[index]` reads that part as numpy."""

    def __init__(self, store: Any):
        self._store = store
        self.shape = tuple(store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._store[index].read().result())


def arrays(workdir: str | os.PathLike, step: int, part: str) -> Mapping[str, Slices]:
    """{'/'-joined path: array} of one part of the state, such as 'ema', without reading any.

    Raises UserError if the checkpoint cannot be read.
    """
    run = paths.anywhere(workdir, '--workdir')
    folder = checkpoint_folder.of(run / 'checkpoints') / str(step) / checkpoint_files.ITEM
    own = f'file://{folder}/' if storage.is_local(folder) else buckets.kvstore(f'{folder}/')
    context = tensorstore.Context({'cache_pool': {'total_bytes_limit': CACHE}})
    try:
        names = checkpoint_files.flatten(checkpoint_files.read_metadata(folder.parent)[part])
        found = {}
        for name in names:
            path = '.'.join((part, *name.split('/')))
            kvstore = {'driver': 'ocdbt', 'base': own, 'path': f'{path}/'}
            spec = {'driver': 'zarr', 'kvstore': kvstore, 'recheck_cached_data': 'open'}
            found[name] = tensorstore.open(spec, open=True, context=context)
        return {name: Slices(store.result()) for name, store in found.items()}
    except Unavailable:
        raise
    except Exception as error:  # many types, for damaged files
        reason = checkpoint_files.reason(error)
        raise UserError(f'checkpoint {folder.parent} cannot be read ({reason})') from None

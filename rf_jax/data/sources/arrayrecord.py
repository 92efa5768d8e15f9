"""ArrayRecord files of TensorFlow Datasets, by their path."""

import os
import re
from functools import partial

from rf_jax.data.shards.array_record_format import ArrayRecord
from rf_jax.data.sources.foreign_shards import ForeignShards
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

_FILES = '*.array_record*'
_SPLIT = re.compile(r'([^/]+)\.array_record')


class ArrayRecordSource(ForeignShards):
    """`arrayrecord:PATH`: a file, a folder with one split, or `/path/coco-train.array_record*`.

    features.json beside the files says what they hold, as for TfdsSource.
    """

    def __init__(self, path: str, max_pixels: int):
        name = f'arrayrecord:{path}'
        if not storage.is_local(path):
            raise UserError(
                f'data.sources: {name} is in a bucket, where ArrayRecord cannot be read: copy it '
                'to a disk, or prepare it with python -m rf_jax.prepare'
            )
        super().__init__('arrayrecord', path, max_pixels, _FILES)
        splits = sorted({match[1] for match in map(_SPLIT.search, self._paths) if match})
        folder = os.path.dirname(self._paths[0])
        if len(splits) > 1:
            raise UserError(
                f'data.sources: {name} has several splits, {", ".join(splits)}: name one, as in '
                f'arrayrecord:{folder}/{splits[-1]}{_FILES[1:]}'
            )
        self._make_format = partial(ArrayRecord, name, folder)
        self._read_as = self._make_format().depends_on

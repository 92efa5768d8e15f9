"""Which tokenizer a run uses."""

import json
import os

from absl import logging

from rf_jax.data import captions, data_fields, records
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.tokenizer import KINDS, Tokenizer, load_tokenizer, tokenizer_file
from rf_jax.interop.pretrained import Pretrained
from rf_jax.runtime import checkpoint, paths, storage
from rf_jax.runtime.errors import Unavailable, require
from rf_jax.training import weight_sources


def find(config, folder: paths.AnyPath, found) -> Tokenizer:
    """The run's own, else `tokenizer.path`, else that of a prepared set, else that of
    `initialise_from`, else a new one.

    The run's own is used once there is a checkpoint, or if the config still asks for the same
    tokenizer. Raises UserError.
    """
    own = tokenizer_file(folder)
    if own and (checkpoint.exists_in(folder) or not _asks_for_another(config, folder)):
        return _load(own)
    return of_config(config, found)


def of_config(config, found) -> Tokenizer:
    """As `find`, for a run that has none yet."""
    tokenizer = _chosen(config, found)
    for folder in weight_sources.downloads(config):
        weights = Pretrained(folder)
        ends = weights.config.get('eos_token_id') or ()
        ends = {ends} if isinstance(ends, int) else set(ends)
        if 'text_embed/table' in weights.leaves and ends and not ends & set(tokenizer.ends):
            logging.warning(
                'Texts of %s end with the id %s (eos_token_id), those of the tokenizer with %s: is '
                'it that of another model?',
                *(
                    folder,
                    ' or '.join(map(str, sorted(ends))),
                    ' or '.join(map(str, tokenizer.ends)),
                ),
            )
    return tokenizer


def _chosen(config, found) -> Tokenizer:
    if config.tokenizer.path:
        return _load(config.tokenizer.path)
    for source in filter(records.is_indexed, found):
        if source.tokenizer:
            return _load(source.tokenizer)
    folders = weight_sources.with_text(config)
    for other in filter(None, map(tokenizer_file, folders)):
        return _load(other)
    require(
        not folders,
        f'initialise_from: {", ".join(map(str, folders))} has no {" and no ".join(KINDS)}: add it, '
        'or set tokenizer.path',
    )
    logging.info('Training a SentencePiece tokenizer on the captions of %s', config.data.sources)
    texts = captions.corpus(found, data_fields.asked_maps(config))
    return SentencePieceTokenizer.train(texts, config.tokenizer.vocab_size)


def _load(path: str | os.PathLike) -> Tokenizer:
    logging.info('Tokenizer: %s', path)
    return load_tokenizer(path)


def _asks_for_another(config, folder: paths.AnyPath) -> bool:
    """Whether the fields that determine the tokenizer differ from the config in the folder."""
    try:
        before = json.loads(storage.read(folder / 'config.json'))
    except Unavailable:  # a ValueError too
        raise
    except (OSError, ValueError):
        return False
    now = json.loads(config.to_json_best_effort())
    return any(before.get(field) != now[field] for field in ('tokenizer', 'initialise_from')) or (
        before.get('data', {}).get('sources') != now['data']['sources']
    )

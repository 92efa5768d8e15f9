"""Text to token ids: the protocol of a tokenizer, its two kinds, and which one a file holds.

python -m rf_jax.data.tokenizer --sources=emoji --vocabulary=2048 --out=tokenizer.model

trains a SentencePiece model; a tokenizer.json comes with pretrained weights.
"""

import os
from collections.abc import Collection, Sequence
from typing import Protocol

from rf_jax.data.chat_format import ChatFormat
from rf_jax.data.hf_tokenizer import HFTokenizer
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime import paths, storage
from rf_jax.runtime.errors import UserError


class Tokenizer(Protocol):
    """`file` is its name in the folder of a run, `model_bytes` what stands in it, `checksum` their
    SHA-256 in hexadecimal.
    """

    file: str
    model_bytes: bytes
    checksum: str
    size: int  # V, rows of the model's embedding
    pad: int
    bos: int  # before a prompt or a document
    eos: int  # after them, and after what the assistant writes
    ends: Sequence[int]  # ids that end an answer when the model writes them; `eos` is the first
    answer: int  # the assistant goes on: after an image of its own, in the plain format always
    image: int  # begins an image in an answer
    specials: Collection[int]  # ids that are no text
    chat: ChatFormat

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens; their names in the text are encoded as plain characters."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special ids are dropped."""


KINDS = {kind.file: kind for kind in (SentencePieceTokenizer, HFTokenizer)}
_ADVICE = (
    "tokenizer.path names a model made by python -m rf_jax.data.tokenizer, Qwen's tokenizer.json, "
    "or the folder of either; '' trains one"
)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a file, or of a folder: of a run, or of downloaded weights; here or in a
    bucket.

    Raises UserError if there is none, or one that cannot be used.
    """
    path = paths.anywhere(path, 'tokenizer.path')
    if storage.is_folder(path):
        found = tokenizer_file(path)
        if found is None:
            raise UserError(f'{path} has no {" and no ".join(KINDS)}. {_ADVICE}')
        path = found
    kind = HFTokenizer if path.suffix == '.json' else SentencePieceTokenizer
    try:
        return kind.load(path)
    except OSError as error:
        raise UserError(f'cannot read tokenizer {path}: {error.strerror}. {_ADVICE}') from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f'tokenizer {path}: {error}. {_ADVICE}') from error


def tokenizer_file(folder: paths.AnyPath) -> paths.AnyPath | None:
    """The file of a tokenizer in a folder, if there is one."""
    found = storage.names(folder)
    return next((folder / name for name in KINDS if name in found), None)


def parse_tokenizer(model_bytes: bytes) -> Tokenizer:
    """The tokenizer with these `model_bytes`. Raises ValueError if they are of neither kind."""
    kind = HFTokenizer if model_bytes.startswith(b'{') else SentencePieceTokenizer
    return kind(model_bytes)


def _main() -> None:
    from absl import flags

    from rf_jax.data.captions import corpus
    from rf_jax.data.source_list import build
    from rf_jax.runtime import cli

    flags.DEFINE_string('sources', 'emoji', 'Sources of the text, as in data.sources.')
    flags.DEFINE_integer(
        'vocabulary', 2048, 'Largest number of tokens, including special tokens and bytes.', 1
    )
    flags.DEFINE(cli.PATH, 'out', 'tokenizer.model', 'File to write.')

    def main(argv):
        del argv
        sources = build(flags.FLAGS.sources, max_pixels=64_000_000)
        tokenizer = SentencePieceTokenizer.train(corpus(sources), flags.FLAGS.vocabulary)
        tokenizer.save(flags.FLAGS.out)
        print(f'{flags.FLAGS.out}: {tokenizer.size} tokens, sha256 {tokenizer.checksum}')

    cli.run(main)


if __name__ == '__main__':
    _main()

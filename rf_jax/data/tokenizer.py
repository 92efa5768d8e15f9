"""Text to token ids: a SentencePiece model, loaded or trained on the run's own sources.

python -m rf_jax.data.tokenizer --sources=emoji --vocabulary=2048 --out=tokenizer.model
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError

_ANSWER = '<answer>'
_PIECE = 4000  # characters; longer texts are split for training, not dropped


class Tokenizer:
    """Lossless: `decode(encode(text)) == text`, except that U+2581 decodes to a space.

    `size` is V, `checksum` the SHA-256 of the model in hexadecimal, `model_bytes` the model.
    Raises ValueError if `model_bytes` is not a model made by this class.
    """

    pad = 0
    bos = 1
    eos = 2
    unk = 3  # of no text: what has no piece is encoded as bytes
    image = unk  # begins an image in an answer
    answer = 4  # separates a question from its answer
    _specials = range(5)

    def __init__(self, model_bytes: bytes):
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not model_bytes:
                raise RuntimeError('empty')
            self._processor.LoadFromSerializedProto(model_bytes)
        except RuntimeError as error:
            raise ValueError('not a SentencePiece model') from error
        found = [
            self._processor.pad_id(),
            self._processor.bos_id(),
            self._processor.eos_id(),
            self._processor.unk_id(),
            self._processor.piece_to_id(_ANSWER),
        ]
        if found != list(self._specials):
            raise ValueError(
                f'its ids of pad, bos, eos, unk and {_ANSWER} are {found}, not 0, 1, 2, 3, 4'
            )
        self.model_bytes = model_bytes
        self.size = self._processor.get_piece_size()
        self.checksum = hashlib.sha256(model_bytes).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens: '</s>' in the text is encoded as plain characters."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special ids are dropped."""
        return self._processor.decode([int(i) for i in ids if int(i) not in self._specials])

    def save(self, path: str | Path) -> None:
        path = paths.local(path, 'path')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.model_bytes)

    @classmethod
    def load(cls, path: str | Path) -> 'Tokenizer':
        """Raises UserError if the file is missing or is not a model made by `train`."""
        advice = (
            "tokenizer.path names a model made by python -m rf_jax.data.tokenizer; '' trains one"
        )
        path = paths.local(path, 'tokenizer.path')
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise UserError(f'cannot read tokenizer {path}: {error.strerror}. {advice}') from error
        except ValueError as error:
            raise UserError(f'tokenizer {path}: {error}. {advice}') from error

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> 'Tokenizer':
        """A new model; the same texts in the same order give the same bytes.

        `vocabulary` includes the special tokens, 256 bytes and all common characters; a small
        corpus gets fewer. Raises UserError if it cannot hold the characters, or texts are empty.
        """
        pieces = _split(texts)
        first = next(pieces, None)
        if first is None:
            raise UserError('the tokenizer has no text to train on: data.sources has no captions')
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_chain(first, pieces),
                model_writer=model,
                vocab_size=vocabulary,
                # Unigram rather than BPE: 3.4 instead of 3.7 tokens per emoji label at 2048, and
                # only unigram can return a smaller vocabulary than requested.
                model_type='unigram',
                hard_vocab_limit=False,
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name='identity',  # answers are compared character by character
                remove_extra_whitespaces=False,
                max_sentence_length=8 * _PIECE,  # bytes
                num_threads=1,  # the order of summation affects the result
                pad_id=cls.pad,
                bos_id=cls.bos,
                eos_id=cls.eos,
                unk_id=cls.unk,
                control_symbols=[_ANSWER],  # gets the first free id; never matched in text
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(
                f'training the tokenizer with tokenizer.vocab_size={vocabulary} failed; the '
                f'special tokens, 256 bytes and all common characters must fit in it: {reason}'
            ) from error
        return cls(model.getvalue())


def _split(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _PIECE):
            yield text[start : start + _PIECE]


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


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
        tokenizer = Tokenizer.train(corpus(sources), flags.FLAGS.vocabulary)
        tokenizer.save(flags.FLAGS.out)
        print(f'{flags.FLAGS.out}: {tokenizer.size} tokens, sha256 {tokenizer.checksum}')

    cli.run(main)


if __name__ == '__main__':
    _main()

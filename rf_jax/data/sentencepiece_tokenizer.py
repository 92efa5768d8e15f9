"""A SentencePiece model, loaded or trained on the run's own sources."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from rf_jax.data import chat_format
from rf_jax.runtime import paths, storage
from rf_jax.runtime.errors import UserError

_ANSWER = '<answer>'
_PIECE = 4000  # characters; longer texts are split for training, not dropped


class SentencePieceTokenizer:
    """A `tokenizer.Tokenizer` with the plain chat format.

    Lossless: `decode(encode(text)) == text`, except that U+2581 decodes to a space. Raises
    ValueError if `model_bytes` is not a model made by this class.
    """

    file = 'tokenizer.model'
    pad = 0
    bos = 1
    eos = 2
    ends = (eos,)
    unk = 3  # of no text: what has no piece is encoded as bytes
    image = unk
    answer = 4  # separates a question from its answer
    specials = range(5)
    chat = chat_format.plain(bos, answer, eos)

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
        if found != list(self.specials):
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
        return self._processor.decode([int(i) for i in ids if int(i) not in self.specials])

    def save(self, path: str | Path) -> None:
        path = paths.local(path, 'path')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.model_bytes)

    @classmethod
    def load(cls, path: paths.AnyPath) -> 'SentencePieceTokenizer':
        """Raises OSError, and ValueError if the file is not a model made by `train`."""
        return cls(storage.read(path))

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> 'SentencePieceTokenizer':
        """A new model; the same texts in the same order give the same bytes.

        `vocabulary` includes the special tokens, 256 bytes and all common characters; a small
        corpus gets fewer. Raises UserError if it cannot hold the characters, or texts are empty,
        and what reading the texts raises.
        """
        faults: list[BaseException] = []  # SentencePiece makes a RuntimeError of each
        pieces = _split(_noting(faults, texts))
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
            if faults:
                raise faults[0] from None
            reason = ' '.join(str(error).split())
            raise UserError(
                f'training the tokenizer with tokenizer.vocab_size={vocabulary} failed; the '
                f'special tokens, 256 bytes and all common characters must fit in it: {reason}'
            ) from error
        return cls(model.getvalue())


def _noting(faults: list[BaseException], texts: Iterable[str]) -> Iterator[str]:
    """The texts; what reading them raises is added to `faults`, and raised."""
    try:
        yield from texts
    except BaseException as error:
        faults.append(error)
        raise


def _split(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _PIECE):
            yield text[start : start + _PIECE]


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest

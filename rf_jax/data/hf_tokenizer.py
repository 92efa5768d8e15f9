"""A tokenizer.json of Hugging Face, as it comes with the weights of Qwen (extra `[hf]`)."""

import hashlib
import json
from collections.abc import Sequence
from types import ModuleType

from rf_jax.data import chat_format
from rf_jax.runtime import paths, storage
from rf_jax.runtime.errors import UserError

PAD, START, END = '<|endoftext|>', '<|im_start|>', '<|im_end|>'
# Each mark is the first of these that there is; one that is missing takes a spare row.
IMAGE = ('<|vision_start|>', '<|image|>')
ANSWER = ('<|vision_end|>', '<|answer|>')
_PROBE = ' Two  words,\n\t1234 é 中文 🎉 '


class HFTokenizer:
    """A `tokenizer.Tokenizer` with ChatML: a byte-level tokenizer that has its special tokens.

    Lossless up to the file's own normalisation: Qwen composes accents (NFC). Added tokens that are
    not special, such as Qwen's <think>, are text. Every row of the model's embedding is a token:
    `with_spare_rows` adds those that are missing. Raises ValueError if `model_bytes` is no such
    tokenizer, UserError if the library is missing.
    """

    file = 'tokenizer.json'

    def __init__(self, model_bytes: bytes):
        self._tokenizer = tokenizer = _parsed(model_bytes)
        self.pad, self.bos, self.eos = (_id(tokenizer, (name,)) for name in (PAD, START, END))
        self.image, self.answer = _id(tokenizer, IMAGE), _id(tokenizer, ANSWER)
        self.ends = self.eos, self.pad  # chat models write the first, base models the second
        marks = {self.pad, self.bos, self.eos, self.image, self.answer}
        added = tokenizer.get_added_tokens_decoder()
        self.specials = frozenset(i for i, token in added.items() if token.special) | marks
        self.model_bytes = model_bytes
        self.size = _rows(tokenizer)
        self.checksum = hashlib.sha256(model_bytes).hexdigest()
        self._check()
        self.chat = chat_format.chatml(self.bos, self.eos, self.encode)

    def _check(self) -> None:
        """Raises ValueError if text would be lost or taken for special tokens."""
        letters = _library().pre_tokenizers.ByteLevel.alphabet()
        missing = sum(self._tokenizer.token_to_id(letter) is None for letter in letters)
        if missing:
            raise ValueError(
                f'its vocabulary is too small: {missing} of 256 bytes have no token, and text with '
                'them would be lost'
            )
        if (found := self.decode(self.encode(_PROBE))) != _PROBE:
            raise ValueError(f'it is not lossless: {_PROBE!r} becomes {found!r}')
        for mark in (self.pad, self.bos, self.eos, self.image, self.answer):
            name = self._tokenizer.id_to_token(mark)
            if mark in self.encode(name):
                raise ValueError(f'text would become the token {name}, which is not special')

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens: '<|im_end|>' in the text is encoded as plain characters."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special ids are dropped."""
        kept = [int(i) for i in ids if int(i) not in self.specials]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    @classmethod
    def load(cls, path: paths.AnyPath) -> 'HFTokenizer':
        """With as many tokens as the model has rows, if its config.json lies beside the file.

        Raises OSError, and as the class does.
        """
        model_bytes = storage.read(path)
        return cls(with_spare_rows(model_bytes, _rows_of_model(path.with_name('config.json'))))


def with_spare_rows(model_bytes: bytes, rows: int | None) -> bytes:
    """The tokenizer.json with our special tokens where it has none, and one token for each of
    `rows` (None: as many as it needs). Raises ValueError if there are too few rows.
    """
    tokenizer = _parsed(model_bytes)
    count = _rows(tokenizer)
    new = [names[-1] for names in (IMAGE, ANSWER) if not _known(tokenizer, names)]
    needed = count + len(new)
    if rows is not None and rows < needed:
        raise ValueError(
            f'its vocabulary is too large: it needs {needed} rows ({count} tokens and {len(new)} '
            f'marks of its own), and config.json beside it says vocab_size={rows}'
        )
    new += [f'<|spare_{i}|>' for i in range((rows or needed) - needed)]
    if not new:
        return model_bytes
    tokens = [_library().AddedToken(name, normalized=False, special=True) for name in new]
    tokenizer.add_special_tokens(tokens)
    if _rows(tokenizer) != count + len(new):
        raise ValueError('its ids have gaps')
    return tokenizer.to_str().encode()


def _rows_of_model(path: paths.AnyPath) -> int | None:
    """`vocab_size` of the config.json of downloaded weights; None if there is none."""
    try:
        rows = json.loads(storage.read(path)).get('vocab_size')
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f'{path} beside it cannot be read: {error}') from None
    if rows is not None and not isinstance(rows, int):
        raise ValueError(f'vocab_size of {path} beside it is {rows!r}, expected a number')
    return rows


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "a tokenizer.json needs the package tokenizers: pip install -e '.[hf]'"
        ) from None
    return tokenizers


def _parsed(model_bytes: bytes):
    """The library's tokenizer, which leaves the names of special tokens in text alone."""
    library = _library()
    try:
        tokenizer = library.Tokenizer.from_str(model_bytes.decode('utf-8'))
    except Exception as error:  # the library raises no type of its own
        raise ValueError(f'not a tokenizer.json of Hugging Face: {error}') from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _rows(tokenizer) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _known(tokenizer, names: Sequence[str]) -> list[int]:
    ids = map(tokenizer.token_to_id, names)
    return [i for i in ids if i is not None]


def _id(tokenizer, names: Sequence[str]) -> int:
    known = _known(tokenizer, names)
    if not known:
        raise ValueError(
            f'it has no {names[0]}; of tokenizer.json files, those with the ChatML tokens of Qwen '
            f'are read ({PAD}, {START}, {END})'
        )
    return known[0]

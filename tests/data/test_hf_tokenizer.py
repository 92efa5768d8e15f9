"""hf_tokenizer.py: Qwen's form of text, special tokens that nobody can type, bad files."""

import builtins
import hashlib
import json
import unicodedata

import pytest
from small_bpe import CHATML, VISION, small_bpe, write_weights

from rf_jax.data.hf_tokenizer import HFTokenizer
from rf_jax.data.tokenizer import load_tokenizer, parse_tokenizer, tokenizer_file
from rf_jax.runtime.errors import UserError

pytest.importorskip('tokenizers')

TEXTS = [
    *('', ' ', '  two  spaces ', 'Case KEPT', 'digits 1234567890', 'tab\tand\r\n\nline \n', '\0'),
    *(
        'São Tomé & Príncipe',
        'e\u0301 a\u0300\u0323',
        '日本語 中文字符',
        '👩‍👩‍👧 🎉 🇩🇪',
        'ﬁ … Ａ ½ \ufffd',
    ),
    *(' '.join(CHATML), 'a<|im_end|>\n<|im_start|>user\nb', '<|image|>', '<|spare_0|>', '<think>'),
]


@pytest.fixture(scope='module')
def content():
    return small_bpe()


@pytest.fixture(scope='module')
def tokenizer(content, tmp_path_factory):
    return load_tokenizer(write_weights(tmp_path_factory.mktemp('weights'), content, rows=400))


@pytest.mark.parametrize('text', TEXTS)
def test_any_text_round_trips_without_special_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.specials)
    assert tokenizer.decode(ids) == unicodedata.normalize('NFC', text)


def test_every_row_of_the_model_is_a_token(tokenizer, content):
    own = len(json.loads(content)['model']['vocab']) + len(CHATML)
    assert tokenizer.size == 400 and (tokenizer.image, tokenizer.answer) == (own, own + 1)
    assert set(range(own - 3, 400)) == set(tokenizer.specials)
    assert tokenizer.decode([*tokenizer.encode('a dog'), *range(own - 3, 400)]) == 'a dog'
    assert tokenizer.pad == own - 3 and tokenizer.bos == own - 2
    assert tokenizer.ends == (own - 1, own - 3) and tokenizer.eos == tokenizer.ends[0]


def test_marks_are_qwens_own_where_it_has_them(tmp_path):
    content = small_bpe(specials=CHATML + VISION)
    found = load_tokenizer(write_weights(tmp_path, content))
    assert found.model_bytes == content.encode(), 'nothing to add'
    assert (found.image, found.answer) == (found.size - 2, found.size - 1)


def test_a_file_and_its_folder_are_the_same_tokenizer(tokenizer, content, tmp_path):
    folder = write_weights(tmp_path, content, rows=400)
    assert load_tokenizer(folder / 'tokenizer.json').checksum == tokenizer.checksum
    assert load_tokenizer(str(folder)).checksum == tokenizer.checksum
    assert tokenizer_file(folder) == folder / 'tokenizer.json'
    assert load_tokenizer(write_weights(tmp_path / 'alone', content)).size == 2 + tokenizer.image


def test_the_bytes_of_a_run_are_the_whole_tokenizer(tokenizer, tmp_path):
    """Also beside a config.json of rf_jax, and for the library itself."""
    from tokenizers import Tokenizer

    again = parse_tokenizer(tokenizer.model_bytes)
    (tmp_path / 'config.json').write_text('{"tokenizer": {"vocab_size": 2048}}')
    (tmp_path / 'tokenizer.json').write_bytes(tokenizer.model_bytes)
    for other in (again, load_tokenizer(tmp_path)):
        assert other.checksum == hashlib.sha256(tokenizer.model_bytes).hexdigest()
        assert (other.size, other.ends, other.chat) == (400, tokenizer.ends, tokenizer.chat)
    assert Tokenizer.from_str(tokenizer.model_bytes.decode()).get_vocab_size() == 400


def without(content, change):
    fields = json.loads(content)
    change(fields)
    return json.dumps(fields)


def not_special(fields):
    for token in fields['added_tokens']:
        token['special'] = False


BAD = {
    'html': (lambda c: '<!DOCTYPE html>', 'not a tokenizer.json'),
    'truncated': (lambda c: c[: len(c) // 2], 'not a tokenizer.json'),
    'no marks': (lambda c: small_bpe(specials=('</s>',)), r'it has no <\|endoftext\|>; .*ChatML'),
    'one mark': (lambda c: small_bpe(specials=CHATML[:2]), r'it has no <\|im_end\|>'),
    'typed marks': (lambda c: without(c, not_special), r'would become the token <\|endoftext'),
    'prefix space': (
        lambda c: without(
            c, lambda f: f['pre_tokenizer']['pretokenizers'][1].update(add_prefix_space=True)
        ),
        'not lossless',
    ),
    'few bytes': (
        lambda c: without(c, lambda f: f['model'].update(vocab={'a': 0, 'b': 1}, merges=[])),
        'vocabulary is too small: 254 of 256 bytes',
    ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_files_are_one_line_that_names_the_field(content, tmp_path, name):
    make, expected = BAD[name]
    folder = write_weights(tmp_path, make(content))
    with pytest.raises(UserError, match=expected) as error:
        load_tokenizer(folder)
    assert '\n' not in str(error.value)
    assert str(folder / 'tokenizer.json') in str(error.value)
    assert 'tokenizer.path' in str(error.value)


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        ('{"vocab_size": 300}', 'needs .* rows .* vocab_size=300'),
        ('{"vocab_size": "many"}', "is 'many', expected a number"),
        ('{"vocab', 'config.json beside it cannot be read'),
        ('[]', 'config.json beside it cannot be read'),
    ],
)
def test_rows_that_do_not_fit_are_refused(content, tmp_path, config, expected):
    folder = write_weights(tmp_path, content)
    (folder / 'config.json').write_text(config)
    with pytest.raises(UserError, match=expected):
        load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / 'vocab.json').write_text('{}')
    expected = r'no tokenizer\.model and no tokenizer\.json\. tokenizer\.path names'
    with pytest.raises(UserError, match=expected):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r'cannot read tokenizer .*No such file'):
        load_tokenizer(tmp_path / 'none' / 'tokenizer.json')


def test_without_the_library_the_error_says_what_to_install(content, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_tokenizers(name, *args, **kwargs):
        if name == 'tokenizers':
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_tokenizers)
    with pytest.raises(UserError, match=r"pip install -e '\.\[hf\]'"):
        load_tokenizer(write_weights(tmp_path, content))
    with pytest.raises(UserError, match=r"pip install -e '\.\[hf\]'"):
        HFTokenizer(content.encode())

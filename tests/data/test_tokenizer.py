"""tokenizer.py: fixed special ids, lossless text, deterministic and quiet training."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from rf_jax.data import captions, source_list
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.runtime import errors
from rf_jax.runtime.errors import UserError

TEXTS = ['a cat on a mat', 'A dog, 12 years', 'What is this?', 'it is a </s> cat <answer>'] * 5


@pytest.fixture(scope='module')
def emoji():
    return source_list.build('emoji', 10**6)


@pytest.fixture(scope='module')
def tokenizer(emoji):
    return SentencePieceTokenizer.train(captions.corpus(emoji), 2048)


def test_specials_have_fixed_ids(tokenizer):
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.answer) == (
        *(0, 1, 2, 3, 4),
    )
    assert tokenizer.size == 2048


@pytest.mark.parametrize(
    'text',
    [
        *('', ' ', '  two  spaces ', 'Case KEPT', 'digits 1234567890', 'tab\tand\nline', '\0'),
        *('São Tomé & Príncipe', 'Japanese “here” button', '日本語 🎉', 'ﬁ … Ａ ½'),
        *('<s></s><pad><unk><answer>', 'a<answer>b', '</s>', '<answer>', '<0x41>', ' ⁇ '),
    ],
)
def test_any_text_round_trips_without_special_ids(tokenizer, text):
    for model in (
        tokenizer,
        SentencePieceTokenizer.train(TEXTS, 400),
    ):  # the second corpus contains special tokens as text
        ids = model.encode(text)
        assert all(5 <= i < model.size for i in ids)
        assert model.decode(ids) == text


def test_decode_drops_special_tokens_and_accepts_arrays(tokenizer):
    ids = [1, *tokenizer.encode('red apple'), 4, 3, 2, 0, 0]
    assert tokenizer.decode(ids) == 'red apple'
    assert tokenizer.decode(np.array(ids, np.int32)) == 'red apple'
    assert tokenizer.decode([]) == ''


def test_labels_are_short(tokenizer, emoji):
    counts = [len(tokenizer.encode(emoji[0].record(i).captions[0])) for i in range(len(emoji[0]))]
    assert np.mean(counts) < 3.6
    assert max(counts) < 24  # data.max_text_tokens


def test_training_is_deterministic_and_quiet(tokenizer, emoji, capfd):
    again = SentencePieceTokenizer.train(captions.corpus(emoji), 2048)
    assert again.model_bytes == tokenizer.model_bytes
    assert again.checksum == hashlib.sha256(tokenizer.model_bytes).hexdigest()
    assert SentencePieceTokenizer.train(TEXTS, 400).checksum != again.checksum
    assert capfd.readouterr() == ('', '')


def test_a_small_corpus_lowers_the_vocabulary():
    small = SentencePieceTokenizer.train(['a cat', 'a dog'], 2048)
    assert 261 < small.size < 300


def test_a_long_text_is_split_not_dropped():
    model = SentencePieceTokenizer.train(['zebra ' * 5000 + 'quokka ' * 5000], 400)
    assert len(model.encode('zebra')) < 4 and len(model.encode('quokka')) < 4


def test_training_errors_name_the_field():
    with pytest.raises(UserError, match=r'tokenizer\.vocab_size=100'):
        SentencePieceTokenizer.train(TEXTS, 100)
    with pytest.raises(UserError, match=r'data\.sources'):
        SentencePieceTokenizer.train([], 2048)


@pytest.mark.parametrize('raised', [UserError('the shard is truncated'), KeyboardInterrupt()])
def test_what_reading_the_texts_raises_is_not_a_fault_of_the_vocabulary(raised):
    def texts():
        yield from 100 * ['a cat']
        raise raised

    with pytest.raises(type(raised)) as found:
        SentencePieceTokenizer.train(texts(), 300)
    assert found.value is raised


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / 'new' / 'tokenizer.model'
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert loaded.checksum == tokenizer.checksum
    assert loaded.encode('a cat') == tokenizer.encode('a cat')


def test_bad_model_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r'(?s)No such file.*tokenizer\.path'):
        load_tokenizer(tmp_path / 'none.model')
    for content in (b'', b'not a model'):
        (tmp_path / 'bad.model').write_bytes(content)
        with pytest.raises(UserError, match='not a SentencePiece model'):
            load_tokenizer(tmp_path / 'bad.model')
    sentencepiece.SentencePieceTrainer.train(  # a valid model with other special tokens
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / 'foreign'),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match='not 0, 1, 2, 3, 4'):
        load_tokenizer(tmp_path / 'foreign.model')


def test_command(tmp_path):
    (tmp_path / 'a.txt').write_text('a cat\n\na dog\n')

    def run(source):
        command = [sys.executable, '-m', 'rf_jax.data.tokenizer', f'--sources={source}']
        out = f'--out={tmp_path / "t.model"}'
        return subprocess.run([*command, out], capture_output=True, text=True)

    done = run(f'text:{tmp_path / "a.txt"}')
    assert done.returncode == 0, done.stderr
    assert load_tokenizer(tmp_path / 't.model').checksum in done.stdout
    failed = run('emojis')
    assert failed.returncode == errors.USER_ERROR
    assert failed.stderr.startswith('error: data.sources') and failed.stderr.count('\n') == 1

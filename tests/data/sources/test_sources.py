"""source_list.py and folder.py: usable records in a fixed order; the rest is counted."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from rf_jax.data import source_list
from rf_jax.data.image_ops import BadImage
from rf_jax.data.records import Record
from rf_jax.data.sources import emoji as emoji_source
from rf_jax.runtime.errors import UserError

MANY = 10**6


@pytest.fixture(scope='module')
def emoji():
    return source_list.build('emoji', MANY)[0]


def image_file(path, height=10, width=12, value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def write_lines(folder, *lines):
    text = '\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / 'captions.jsonl').write_text(text, encoding='utf-8')


def test_emoji_records(emoji):
    assert len(emoji) == 1851 and emoji.name == 'emoji' and not emoji.skipped
    records = [emoji.record(i) for i in range(len(emoji))]
    assert all((r.height, r.width) == (64, 64) and r.captions[0] and r.kind for r in records)
    assert {emoji.image(i).shape for i in range(len(emoji))} == {(64, 64, 3)}
    assert records[0].captions == ('grinning face',) and 'smile' in records[0].tags
    kinds = {r.captions[0]: r.kind for r in records}
    assert kinds['dog face'] == 'animal' and kinds['flag: Zimbabwe'] == 'flag'
    assert kinds['red heart'] == 'heart' and kinds['guitar'] == 'musical instrument'
    again = source_list.build('emoji', MANY)[0]
    assert [again.record(i) for i in range(len(again))] == records


def test_emoji_images_from_many_threads(emoji):
    alone = [emoji.image(i) for i in range(60)]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 and p.std() > 1 for p in alone)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(emoji.image, range(60)))
    np.testing.assert_array_equal(alone, together)


def test_licences_stay_with_the_images():
    notice = (emoji_source._EMOJI.parent / 'NOTICE.md').read_text(encoding='utf-8')
    for holder in ('Microsoft Corporation', 'Miles Johnson', 'Unicode, Inc.'):
        assert holder in notice
    assert notice.count('The above copyright notice and this permission notice shall') == 2
    assert 'UNICODE LICENSE V3' in notice


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('emojis', r"unknown kind 'emojis'.*Did you mean 'emoji'\?.*folder:/path"),
        ('emoji, floder:/x', r"unknown kind 'floder'.*Did you mean 'folder'\?"),
        ('qqq', r"unknown kind 'qqq' in 'qqq'\. Known"),
        (' , ', 'is empty'),
        ('emoji:64', 'takes no argument'),
        ('folder', r'captions\.jsonl'),
        ('text:', 'neither a text file nor a folder'),
        ('text:/no/such', 'neither a text file nor a folder'),
        ('folder:~no_such_user/x', r'~no_such_user/x cannot be read: '),
        ('text:~no_such_user/x', r'~no_such_user/x cannot be read: '),
        (f'folder:/tmp/{"x" * 300}', r'cannot be read: .*name too long'),
        (f'text:/tmp/{"x" * 300}', r'cannot be read: .*name too long'),
    ],
)
def test_errors_name_the_field(text, message):
    with pytest.raises(UserError, match=r'data\.sources.*' + message):
        source_list.build(text, MANY)


def test_several_sources_keep_their_order(tmp_path):
    (tmp_path / 'a.txt').write_text('words')
    built = source_list.build(f' text:{tmp_path}/a.txt, emoji ', MANY)
    assert [source.name for source in built] == [f'text:{tmp_path}/a.txt', 'emoji']
    twice = source_list.build('emoji,emoji', MANY)
    assert len(twice) == 2 and twice[0] is twice[1]


def test_the_summary_has_everything_that_a_plan_depends_on(tmp_path):
    lines = [{'file': f'{i}.png', 'caption': f'image {i}'} for i in range(3)]
    for line in lines:
        image_file(tmp_path / line['file'])

    def summary():
        return source_list.summary(source_list.build(f'folder:{tmp_path}', MANY))

    write_lines(tmp_path, *lines)
    whole = summary()
    assert whole == summary() and whole.startswith('3 examples (0 left out')
    write_lines(tmp_path, *lines[::-1])
    assert summary() != whole, 'another order'
    write_lines(tmp_path, *lines[:2], lines[2] | {'caption': 'another'})
    assert summary() != whole
    write_lines(tmp_path, *lines)
    (tmp_path / '1.png').unlink()
    assert summary().startswith('2 examples (1 left out')
    procedural = source_list.build('scenes:aligned/48/count=2000000000', MANY)
    assert source_list.summary(procedural).startswith('2000000000 examples'), (
        'nobody reads all of them'
    )


def test_folder_reads_every_field(tmp_path):
    image_file(tmp_path / 'b.png', value=1)
    image_file(tmp_path / 'sub' / 'a.jpg', 20, 30, value=200)
    write_lines(
        tmp_path,
        {'file': 'sub/a.jpg', 'caption': '  two\n words ', 'tags': ['x ', ''], 'kind': 'k'},
        '',
        {
            'file': 'b.png',
            'captions': ['one', 'two'],
            'questions': [{'question': 'How many?', 'answer': ' 3'}],
        },
        {'file': 'b.png', 'text': 't'},
        {'file': 'b.png', 'label': 'l'},
    )
    source = source_list.build(f'folder:{tmp_path}', MANY)[0]
    assert [source.record(i) for i in range(len(source))] == [
        Record(20, 30, ('two words',), ('x',), 'k'),
        Record(10, 12, ('one', 'two'), questions=(('How many?', '3'),)),
        Record(10, 12, ('t',)),
        Record(10, 12, ('l',)),
    ]
    assert source.image(0).shape == (20, 30, 3) and (source.image(1) == 1).all()
    assert not source.skipped


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path):
    image_file(tmp_path / 'a.png')
    write_lines(
        tmp_path,
        r'{"file": "a.png", "caption": "a cat \ud83d", "tags": ["\ude00 b"]}',
        r'{"file": "a.png", "caption": "whole \ud83d\ude00"}',
    )
    source = source_list.build(f'folder:{tmp_path}', MANY)[0]
    assert source.record(0) == Record(10, 12, ('a cat ?',), ('? b',))
    assert source.record(1).captions == ('whole \N{GRINNING FACE}',)


def test_folder_skips_and_counts_what_it_cannot_use(tmp_path, caplog):
    folder = tmp_path / 'set'
    image_file(folder / 'good.png')
    image_file(folder / 'large.png', 200, 200)
    image_file(tmp_path / 'outside.png')
    (folder / 'text.png').write_text('no image')
    (folder / 'sub').mkdir()
    good = {'file': 'good.png', 'caption': 'kept'}
    write_lines(
        folder,
        '{not json',
        '[1]',
        {'caption': 'no file'},
        {'file': 'good.png', 'caption': 5},
        {'file': 'good.png', 'caption': {'en': 'x'}},
        {'file': 3, 'caption': 'x'},
        {'file': 'good.png'},
        {'file': 'good.png', 'caption': ' \t'},
        {'file': 'good.png', 'caption': ['', ' ']},
        good,
        {'file': '../outside.png', 'caption': 'x'},
        {'file': 'sub/../../outside.png', 'caption': 'x'},
        {'file': str(tmp_path / 'outside.png'), 'caption': 'x'},
        {'file': 'missing.png', 'caption': 'x'},
        {'file': 'text.png', 'caption': 'x'},
        {'file': '.', 'caption': 'x'},
        {'file': 'large.png', 'caption': 'x'},
        {'file': 'sub/../good.png', 'caption': 'kept too'},
    )
    with caplog.at_level('WARNING'):
        source = source_list.build(f'folder:{folder}', max_pixels=10_000)[0]
    kept = [source.record(i).captions[0] for i in range(len(source))]
    assert kept == ['kept', 'kept too']
    assert source.skipped == {
        'malformed line': 6,
        'empty caption': 3,
        'file outside the folder': 3,
        'bad image': 3,
        'more than data.max_pixels': 1,
    }
    assert 'line 3: no "file" (there is caption), ...' in caplog.text
    assert 'missing.png: the file is missing' in caplog.text


def test_null_is_absent_and_so_are_optional_fields_of_other_shapes(tmp_path):
    image_file(tmp_path / 'a.png')
    asked = [('?', ''), ('', 'a'), (None, 'a'), ('q', 'a')]
    good = {'file': 'a.png', 'caption': 'kept'}
    write_lines(
        tmp_path,
        good | {'tags': None, 'kind': None, 'questions': None},
        good | {'caption': None, 'text': 'kept'},
        good | {'questions': [{'question': q, 'answer': a} for q, a in asked]},
        good | {'caption': {'en': 'a cat', 'de': 'eine Katze'}},
        good | {'tags': {'cat': 1}},
        good | {'tags': [None]},
        '[' * 100_000,
    )
    source = source_list.build(f'folder:{tmp_path}', MANY)[0]
    plain = Record(10, 12, ('kept',))
    found = [source.record(i) for i in range(len(source))]
    asked = Record(10, 12, ('kept',), questions=(('q', 'a'),))
    assert found == [plain, plain, asked, plain, plain]
    assert source.skipped == {'malformed line': 2}


def test_missing_permission_is_reported(tmp_path, monkeypatch):
    (tmp_path / 'captions.jsonl').write_text('')

    def refuse(*_):
        raise PermissionError(13, 'Permission denied')  # simulated: root can read anything

    monkeypatch.setattr('pathlib.Path.read_bytes', refuse)
    monkeypatch.setattr('os.listdir', refuse)
    for kind in ('folder', 'text'):
        with pytest.raises(UserError, match=rf'{kind}:{tmp_path} cannot be read: .*Permission'):
            source_list.build(f'{kind}:{tmp_path}', MANY)


def test_folder_without_anything_usable_shows_an_example(tmp_path):
    with pytest.raises(UserError, match=r'data\.sources.*captions\.jsonl.*"file": "cats/001'):
        source_list.build(f'folder:{tmp_path}', MANY)
    write_lines(tmp_path, {'file': 'none.png', 'caption': 'x'})
    with pytest.raises(UserError, match=r'no usable image.*none\.png.*missing.*"file": "cats'):
        source_list.build(f'folder:{tmp_path}', MANY)


def test_a_image_that_breaks_later_is_a_bad_image(tmp_path):
    image_file(tmp_path / 'a.png', 50, 50)
    write_lines(tmp_path, {'file': 'a.png', 'caption': 'x'})
    source = source_list.build(f'folder:{tmp_path}', MANY)[0]
    (tmp_path / 'a.png').write_bytes((tmp_path / 'a.png').read_bytes()[:60])
    with pytest.raises(BadImage):
        source.image(0)


def test_text_has_one_record_per_paragraph(tmp_path):
    (tmp_path / 'b.txt').write_text('last')
    (tmp_path / 'a.txt').write_bytes('\ufefffirst\r\nline\r\n \r\n\r\nsecond  one\n'.encode())
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9')
    (tmp_path / 'other.md').write_text('not read')
    (tmp_path / 'folder.txt').mkdir()
    source = source_list.build(f'text:{tmp_path}', MANY)[0]
    found = [source.record(i) for i in range(len(source))]
    assert found == [Record(0, 0, (text,)) for text in ('first line', 'second one', 'last')]
    assert source.skipped == {'not UTF-8 text': 1, 'cannot be read': 1}
    with pytest.raises(BadImage):
        source.image(0)
    one = source_list.build(f'text:{tmp_path / "b.txt"}', MANY)[0]
    assert len(one) == 1
    (tmp_path / 'b.txt').write_text(' \n\n')
    with pytest.raises(UserError, match=r'data\.sources.*has no text'):
        source_list.build(f'text:{tmp_path / "b.txt"}', MANY)

"""listing.py: folders as other programs write them; no path leaves them."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rf_jax.data import source_list
from rf_jax.data.sources import listing
from rf_jax.data.sources.listing import Outside, inside
from rf_jax.evaluation import scoring
from rf_jax.runtime.errors import UserError

MANY = 10**6
LINES = [{'file': 'a.png', 'caption': 'one'}, {'file': 'sub/b.png', 'caption': 'two, three'}]


@pytest.fixture
def folder(tmp_path):
    for file in ('set/a.png', 'set/sub/b.png', 'outside.png'):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(tmp_path / file)
    return tmp_path / 'set'


def read(folder, text=None, name='captions.jsonl', kind='folder'):
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(data)
    source = source_list.build(f'{kind}:{folder}', MANY)[0]
    for i in range(len(source)):
        assert source.image(i).shape == (4, 6, 3)
    return source


def captions(source):
    return [source.record(i).captions[0] for i in range(len(source))]


def jsonl(lines=LINES, end='\n'):
    return end.join(map(json.dumps, lines))


@pytest.mark.parametrize(
    'text',
    [
        jsonl(),
        jsonl(end=',\n'),
        jsonl(end=',\r\n') + ',',
        json.dumps(LINES),
        json.dumps(LINES, indent=2),
        json.dumps(LINES, indent=2).replace('}\n]', '},\n]').replace('"\n', '",\n'),
        '[\n' + jsonl(end=',\n') + ',\n]\n',
        jsonl().replace('}', ',}'),
        jsonl().encode('utf-8-sig'),
        jsonl().encode('utf-16'),
        b'\xfe\xff' + jsonl(end='\r\n').encode('utf-16-be'),
        jsonl().replace('"file"', '"file_name"').replace('"caption"', '"text"'),
        jsonl().replace('"file"', '"image"'),
        jsonl().replace('sub/b.png', r'sub\\b.png'),
        jsonl().replace('sub/b.png', r'.\\sub\\b.png'),
    ],
    ids=['plain', 'commas', 'CRLF', 'array', 'indented', 'array comma', 'lines in array',
         'object comma', 'UTF-8 mark', 'UTF-16', 'UTF-16 big', 'imagefolder', 'image', 'windows',
         'windows dot'],
)  # fmt: skip
def test_captions_as_other_programs_write_them(folder, text):
    source = read(folder, text)
    assert captions(source) == ['one', 'two, three'] and not source.skipped


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_metadata_of_an_imagefolder(folder, encoding):
    csv = 'file_name,text,other\na.png,one,\nsub/b.png,"two, three",x\n'
    source = read(folder, csv.encode(encoding), 'metadata.csv')
    assert captions(source) == ['one', 'two, three'] and not source.skipped
    lines = jsonl().replace('"file"', '"file_name"').replace('one', 'first')
    assert captions(read(folder, lines, 'metadata.jsonl')) == ['first', 'two, three']
    assert captions(read(folder, jsonl())) == ['one', 'two, three'], 'captions.jsonl goes first'


@pytest.mark.parametrize(('stored', 'listed'), [('NFD', 'NFC'), ('NFC', 'NFD')])
def test_names_with_composed_and_decomposed_accents(folder, stored, listed):
    name = 'Café/é.png'
    file = folder / unicodedata.normalize(stored, name)
    file.parent.mkdir()
    (folder / 'a.png').rename(file)
    windows = name.replace('/', '\\')
    for each in (name, windows):
        line = {'file': unicodedata.normalize(listed, each), 'caption': 'x'}
        assert captions(read(folder, json.dumps(line))) == ['x']


def test_an_absolute_path_inside_the_folder(folder, tmp_path):
    (tmp_path / 'link').symlink_to(folder)
    line = {'file': str(folder / 'a.png'), 'caption': 'x'}
    assert captions(read(folder, json.dumps(line))) == ['x']
    assert captions(read(tmp_path / 'link')) == ['x'], 'by another name of the folder'


def test_a_comma_in_the_name_of_a_folder(folder):
    named = folder.rename(folder.parent / 'cats, scenes:dogs')
    (named / 'captions.jsonl').write_text(jsonl())
    escaped = str(named).replace(',', r'\,')
    built = source_list.build(f'folder:{escaped}, emoji', MANY)
    assert [source.name for source in built] == [f'folder:{named}', 'emoji']
    with pytest.raises(UserError, match=r'unknown kind .*A comma .* is written \\,'):
        source_list.build(f'folder:{named.parent}/cats,dogs', MANY)

    class config:
        data = type('data', (), {'sources': f'folder:{escaped}'})

    assert not scoring.trains_on_scenes(config), 'nor is it taken for scenes'


def test_a_bad_line_says_what_is_wrong(folder, caplog):
    with caplog.at_level('WARNING'):
        source = read(
            folder,
            '{not json\n{"caption": "no file"}\n[1]\n' + jsonl(),
        )
    assert source.skipped == {'malformed line': 3}
    assert 'line 1: Expecting property name' in caplog.text
    assert 'line 2: no "file" (there is caption)' in caplog.text
    assert 'line 3: expected {...}, not list' in caplog.text
    caplog.clear()
    with caplog.at_level('WARNING'):
        read(folder, jsonl([LINES[0] | {'caption': 5}, LINES[1]]))
    assert 'line 1: "caption" is neither a string nor a list of strings' in caplog.text
    caplog.clear()
    with caplog.at_level('WARNING'):
        read(folder, jsonl([LINES[0] | {'questions': ['?']}, LINES[1] | {'questions': '?'}]))
    assert '"questions" has another form and is ignored in line 1 and 1 more' in caplog.text


def test_what_metadata_from_elsewhere_calls_alike_costs_no_image():
    for odd in (
        {'tags': {'general': ['x']}}, {'tags': [1, 2]}, {'kind': 3}, {'questions': ['what?']},
        {'questions': 'what?'}, {'questions': [{'question': 'what?', 'answer': 3}]},
        {'captions': {'short': 'x'}}, {'label': 7},
    ):  # fmt: skip
        assert listing.texts({'caption': 'a cat', **odd}) == {
            'captions': ('a cat',), 'tags': (), 'kind': '', 'questions': (),
        }, odd  # fmt: skip
    pair = {'question': 'how many?', 'answer': 'two'}
    found = listing.texts(
        {'caption': ['a', None, 'b'], 'tags': ['x', None], 'questions': [None, 'what?', pair]}
    )
    assert (found['captions'], found['tags']) == (('a', 'b'), ('x',))
    assert found['questions'] == (('how many?', 'two'),)
    assert listing.texts({'caption': {'short': 'x'}, 'text': 'a cat'})['captions'] == ('a cat',)
    assert listing.texts({'caption': '', 'label': 'cat'})['captions'] == ('cat',)
    assert listing.texts({'caption': [None, ' ']})['captions'] == ()


@pytest.mark.parametrize(
    ('data', 'name', 'message'),
    [
        (b'[{"file": "a.png",\n"caption": }]', 'captions.jsonl', 'JSON array but does not parse'),
        (b'[' * 100_000, 'captions.jsonl', 'JSON array but does not parse'),
        (b'\xff\xfe{\0"', 'captions.jsonl', 'starts with a UTF-16 byte-order mark'),
        (b'file_name,text\na.png,caf\xe9\n', 'metadata.csv', 'cannot be read as CSV'),
    ],
)
def test_a_file_that_cannot_be_read_says_why(folder, data, name, message):
    with pytest.raises(UserError, match=f'{name}.*{message}'):
        read(folder, data, name)


PARENT = 'root'  # the name that a lexical check gives to the folder it does not know
CLIMBING = ['../outside.png', f'../{PARENT}/../outside.png', '../set/../outside.png',
            'sub/../../outside.png', r'..\outside.png', r'sub\..\..\outside.png',
            f'../{PARENT}/outside.png']  # fmt: skip


@pytest.mark.parametrize('kind', ['folder', 'folder+links'])
@pytest.mark.parametrize('file', CLIMBING)
def test_no_path_leaves_the_folder(folder, file, kind, caplog):
    (folder.parent / PARENT).mkdir()
    Image.open(folder.parent / 'outside.png').save(folder.parent / PARENT / 'outside.png')
    source = read(folder, jsonl([{'file': file, 'caption': 'x'}, LINES[0]]), kind=kind)
    assert captions(source) == ['one'] and source.skipped == {'file outside the folder': 1}


def test_links_out_of_the_folder_are_followed_only_on_request(folder, caplog):
    (folder / 'file.png').symlink_to('../outside.png')
    (folder / 'up').symlink_to('..')
    (folder / 'within.png').symlink_to('sub/b.png')
    names = ['file.png', 'up/outside.png', 'within.png', 'up/../a.png']
    lines = jsonl([{'file': name, 'caption': name} for name in names])
    with caplog.at_level('WARNING'):
        source = read(folder, lines)
    assert captions(source) == ['within.png', 'up/../a.png']
    assert source.skipped == {'file outside the folder': 2}
    assert 'a symbolic link leads out of the folder (folder+links:/path' in caplog.text
    assert captions(read(folder, kind='folder+links')) == names


def test_a_listing_that_links_out_of_the_folder_is_read_only_on_request(folder):
    (folder.parent / 'blob').write_text(jsonl())  # as in the snapshots of the Hugging Face hub
    (folder / 'captions.jsonl').symlink_to('../blob')
    with pytest.raises(UserError, match=r'symbolic link .*folder\+links:/path'):
        read(folder)
    assert captions(read(folder, kind='folder+links')) == ['one', 'two, three']


def test_text_files_linked_from_outside_are_read_only_on_request(tmp_path):
    (tmp_path / 'secret').write_text('secret')
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'a.txt').write_text('plain')
    (tmp_path / 'set' / 'b.txt').symlink_to('../secret')
    source = source_list.build(f'text:{tmp_path}/set', MANY)[0]
    assert captions(source) == ['plain'] and source.skipped == {'file outside the folder': 1}
    assert captions(source_list.build(f'text+links:{tmp_path}/set', MANY)[0]) == ['plain', 'secret']


def test_the_folder_may_be_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert inside(Path('.'), 'a.png', False) == folder / 'a.png'
    for root in ('.', '..', 'sub/..'):
        with pytest.raises(Outside):
            inside(Path(root), os.path.join('..', '..', 'outside.png'), False)

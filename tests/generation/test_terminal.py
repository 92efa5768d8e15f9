"""What is typed into rf_jax.chat: files as terminals paste them, unknown commands, Ctrl-C."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rf_jax.generation import terminal
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.runtime.errors import UserError


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """The name of an image in the working directory, which is also the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    Image.new('RGB', (4, 4), 'red').save(tmp_path / 'my photo.png')
    return 'my photo.png'


@pytest.mark.parametrize(
    'text',
    [
        '{}',
        '"{}"',
        "'{}' ",
        r'my\ photo.png',
        '~/{}',
        "'{home}/{}'",
        'file://{home}/my%20photo.png',
    ],
)
def test_an_image_is_found_as_a_terminal_pastes_its_name(photo, text):
    text = text.format(photo, home=Path.cwd())
    assert terminal.read('/image ', terminal.file_of(text), 10**6).shape == (4, 4, 3)


def test_a_name_with_a_quote_of_its_own_is_that_file(photo):
    os.rename(photo, "it's.png")
    assert terminal.file_of("it's.png") == "it's.png"


@pytest.mark.parametrize('text, why', [('https://a.b/c.png', 'URL'), ('none.png', 'missing')])
def test_an_image_that_cannot_be_read_is_named(photo, text, why):
    with pytest.raises(UserError, match=f'/image .*{text}.*{why}'):
        terminal.read('/image ', terminal.file_of(text), 10**6)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def said(left, *parts):
    """Parts of an answer; functions among them are called. `left` is told if it is not read out."""
    try:
        for part in parts:
            if callable(part):
                part()
            else:
                yield part
    except GeneratorExit:
        left.append(True)
        raise


def show(monkeypatch, left, *parts, at_terminal=True):
    monkeypatch.setattr('sys.stdin.isatty', lambda: at_terminal)
    terminal.show(said(left, *parts), save=None, stoppable=True)


def test_ctrl_c_at_a_terminal_stops_the_answer_alone(monkeypatch, capsys):
    before, left = signal.getsignal(signal.SIGINT), []
    show(monkeypatch, left, 'a red', ctrl_c, ' ring', ' and more')
    assert capsys.readouterr().out == 'a red ring [stopped]\n' and left
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_and_one_without_a_terminal_end_the_command(monkeypatch, request):
    # A shell that runs tests in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):
        show(monkeypatch, [], 'a', ctrl_c, ctrl_c, 'b')
    with pytest.raises(KeyboardInterrupt):
        show(monkeypatch, [], 'a', ctrl_c, 'b', at_terminal=False)


def test_images_are_saved_and_named(monkeypatch, capsys):
    image = GeneratedImage(np.zeros((4, 4, 3), np.uint8), None, '', 0)
    terminal.show(said([], 'see ', image, 'there'), save=lambda image: image.shape, stoppable=False)
    assert capsys.readouterr().out == 'see [(4, 4, 3)] there\n'

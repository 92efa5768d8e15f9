"""rf_jax.chat: which line has the images of /image."""

from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from configs import base
from rf_jax import chat
from rf_jax.runtime.errors import UserError


class Talk:
    """Refuses what has 'no' in it; `heard`: (text, number of images) of each line."""

    def __init__(self, heard):
        self.heard = heard

    def stream(self, message, **settings):
        self.heard.append((message.text, len(message.images)))
        if 'no' in message.text:
            raise UserError('refused')
        return (part for part in ['yes'])


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """Function of the lines of a user; gives what was heard, and what was printed."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)
    config, heard = base.get_config(), []
    sampler = SimpleNamespace(config=config, conversation=lambda: Talk(heard))
    monkeypatch.setattr(chat.Sampler, 'load', lambda *_, **__: sampler)
    flags.FLAGS.mark_as_parsed()

    def tell(*lines):
        monkeypatch.setattr(chat.terminal, 'lines', lambda: iter(lines))
        with flagsaver.flagsaver(workdir=tmp_path, out=tmp_path / 'out'):
            chat.main([])
        return heard, capsys.readouterr().out

    return tell


def test_a_line_that_is_refused_leaves_its_images_for_the_next(told):
    heard, out = told('/image a.png', '/image a.png', 'no', 'what?', 'and now?')
    assert heard == [('no', 2), ('what?', 2), ('and now?', 0)]
    assert 'error: refused (its images wait for the next line)\n' in out


def test_images_that_wait_go_into_another_conversation_or_are_forgotten(told):
    assert told('/image a.png', 'no', '/new', 'a', '/image a.png', '/image', 'b')[0] == [
        ('no', 1), ('a', 1), ('b', 0)]  # fmt: skip

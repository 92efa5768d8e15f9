"""rf_jax.chat: which line has the images of /image."""

import subprocess
import sys

import numpy as np
import pytest
from command_line import ROOT
from PIL import Image

pytestmark = pytest.mark.slow

# A process of its own, as the flags of two commands do not fit into one. This model refuses what
# has 'no' in it, and otherwise says what it heard.
COMMAND = """
from types import SimpleNamespace

from configs import base
from rf_jax import chat
from rf_jax.runtime.errors import UserError


class Talk:
    def stream(self, message, **settings):
        if 'no' in message.text:
            raise UserError('refused')
        return (part for part in [f'{message.text} {len(message.images)}'])


sampler = SimpleNamespace(config=base.get_config(), conversation=Talk)
chat.Sampler.load = lambda *_, **__: sampler
chat.cli.run(chat.main)
"""


def told(folder, *lines):
    """What is printed when a user types these lines."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / 'a.png')
    lines = [line.replace('a.png', f'{folder}/a.png') for line in lines]
    found = subprocess.run(
        [sys.executable, '-c', COMMAND, f'--workdir={folder}', f'--out={folder}/out'],
        input='\n'.join(lines), capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


REFUSED = 'error: refused (its images stay attached to the next line)'


def test_a_line_that_is_refused_leaves_its_images_for_the_next(tmp_path):
    lines = '/image a.png', '/image a.png', 'no', 'what?', 'and then?'
    assert told(tmp_path, *lines) == [REFUSED, 'what? 2', 'and then? 0']


def test_pending_images_go_into_a_new_conversation_or_are_dropped(tmp_path):
    lines = '/image a.png', 'no', '/new', 'a', '/image a.png', '/image', 'b', 'no'
    assert told(tmp_path, *lines) == [REFUSED, 'a 1', 'b 0', 'error: refused']

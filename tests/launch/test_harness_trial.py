"""Both harnesses are given the same questions, and the score beside them counts what is right."""

import base64
import csv
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rf_jax.data.messages import Message, TextPart
from rf_jax.data.sources.scenes import ScenesSource
from rf_jax.evaluation.vqa import question_set

sys.path.insert(0, str(Path(__file__).parents[2] / 'launch'))
import harness_trial


@pytest.fixture(scope='module')
def asked():
    source = ScenesSource('aligned/48', 10**8)
    return [(source.image(i), question) for i, question in question_set(source, 2)]


def test_both_harnesses_get_the_same_questions_and_exact_images(asked, tmp_path):
    harness_trial.write(tmp_path, asked, 'http://127.0.0.1:1234', 'mine')
    task, kit = tmp_path / 'lmms_eval', tmp_path / 'vlmevalkit'
    lines = [json.loads(line) for line in (task / 'rf_scenes.jsonl').read_text().splitlines()]
    with open(kit / 'LMUData' / 'rf_scenes_GQA.tsv', newline='') as file:
        table = list(csv.DictReader(file, delimiter='\t'))
    assert table == [{**line, 'index': str(line['index'])} for line in lines]
    images = runpy.run_path(str(task / 'rf_scenes.py'))['images']
    for line, (image, question) in zip(lines, asked, strict=True):
        assert (line['question'], line['answer']) == (question.question, question.answer)
        (read,) = images(line)
        np.testing.assert_array_equal(read, image)
    yaml = (task / 'rf_scenes.yaml').read_text()
    assert f'test: {json.dumps(str(task / "rf_scenes.jsonl"))}' in yaml
    config = json.loads((kit / 'config.json').read_text())
    assert config['model']['mine']['api_base'] == 'http://127.0.0.1:1234/v1/chat/completions'
    assert config['data']['rf_scenes_GQA']['dataset'] == 'rf_scenes_GQA', 'the name of the file'


class Knowing:
    """Knows an answer by its question, but only of exact images."""

    def __init__(self, asked):
        self.known = {(image.tobytes(), q.question): q.answer for image, q in asked}

    def answer(self, images, questions):
        pairs = zip(map(np.asarray, images), questions, strict=True)
        found = [self.known.get((image.tobytes(), text), '?') for image, text in pairs]
        return [f' {answer.upper()}\n' for answer in found[:-1]] + ['?']

    def chat(self, conversations, max_tokens):
        parts = [message['content'] for (message,) in conversations]
        said = self.answer(*zip(*((image['image'], text['text']) for image, text in parts)))
        return [Message('assistant', (TextPart(text),)) for text in said]


def test_the_scores_are_shares_of_right_answers_on_the_images_that_a_harness_sends(asked):
    right = (len(asked) - 1) / len(asked)
    found = harness_trial.scores(Knowing(asked), asked)
    assert found == {'chat, PNG': right, 'chat, JPEG': 0.0, 'answer': right}
    png = Image.open(io.BytesIO(harness_trial.encoded(asked[0][0], 'PNG')))
    np.testing.assert_array_equal(png, asked[0][0])
    assert base64.b64encode(harness_trial.encoded(asked[0][0], 'JPEG')).startswith(b'/9j/')

"""What a notebook sees of a run: the notebook itself runs, and codes are those of training."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from shrink import tiny_run

from rf_jax.evaluation.inspection import Inspector
from rf_jax.models import quantizer
from rf_jax.models.representation import forcing
from rf_jax.runtime import checkpoint
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / 'notebooks' / 'inspect_run.ipynb'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(run, state) of a tiny run with the quantizer that does not depend on the batch."""
    folder = tmp_path_factory.mktemp('run')
    run = tiny_run(folder, {'steps': 2, 'model.representation.quantizer.mode': 'nearest'})
    yield run, train_loop.train(run)


def test_codes_are_those_that_training_uses(trained):
    run, state = trained
    batch = run.batches.batch(0)
    assign = quantizer.build(run.config)
    codes, _ = jax.jit(lambda s, b: forcing.quantize(run.config, assign, run.model, s, b))(
        state, batch
    )
    expected, images = [], []
    for draws, row in zip(run.batches.plan.rows(0), np.asarray(codes)):
        at = 0
        for draw in draws:
            if draw.task == 'text_to_image':
                source, index = run.batches.pools[draw.task].at(draw.index)
                spans = run.batches.spans(draw, decode=False)
                if spans[-1].height * spans[-1].width == 16:  # 64 px, as the inspector fits them
                    images.append(source.image(index))
                    expected.append(row[at : at + 4].reshape(2, 2))
                at += spans[-1].height * spans[-1].width // 4
    inspector = Inspector.load(run.workdir)
    found = inspector.codes(images)
    assert len(found) > 4
    np.testing.assert_array_equal(found, expected)
    floats = [image / np.float32(255) for image in images]
    np.testing.assert_array_equal(inspector.codes(floats), expected)
    np.testing.assert_array_equal(inspector.meanings(floats), inspector.meanings(images))


def test_weights_and_codebook_are_of_one_checkpoint(trained, monkeypatch):
    asked = []

    def noted(restore):
        def note(folder, step=None, **options):
            asked.append((options['only'], step))
            return restore(folder, step, **options)

        return note

    for name in ('restore_numpy', 'restore_placed'):
        monkeypatch.setattr(checkpoint, name, noted(getattr(checkpoint, name)))
    assert Inspector.load(trained[0].workdir).step == 2
    assert asked == [('ema', None), ('codebook', 2)]


def test_mean_pieces_are_the_mean_of_all_with_the_token(trained):
    inspector = Inspector.load(trained[0].workdir)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    means, side = inspector.mean_pieces(images), inspector.side
    codes = inspector.codes(images)
    code = int(codes[0][1, 0])
    pieces = [
        image[r * side : (r + 1) * side, c * side : (c + 1) * side].astype(float)
        for image, own in zip(images, codes)
        for r, c in zip(*np.nonzero(own == code))
    ]
    np.testing.assert_allclose(means[code], np.mean(pieces, 0), atol=0.51)
    assert set(means) == set(np.unique(codes).tolist())


def test_meanings_show_pieces_by_token(trained):
    inspector = Inspector.load(trained[0].workdir)
    red, blue = (np.full((64, 64, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = inspector.meanings([red, blue], tokens=8, examples=3)  # two images have 8 at most
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    colours = {tuple(x) for x in sheet.reshape(-1, 3)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours


def test_notebook_runs_from_top_to_bottom(trained, capsys):
    run, _ = trained
    cells = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
    assert all(not cell.get('outputs') for cell in cells), 'commit the notebook without outputs'
    names = {}
    for cell in cells:
        if cell['cell_type'] == 'code':
            code = ''.join(cell['source']).replace("'runs/emoji'", repr(str(run.workdir)))
            exec(compile(code, NOTEBOOK.name, 'exec'), names)
    printed = capsys.readouterr().out
    assert 'red apple: ' in printed and 'backbone/' in printed

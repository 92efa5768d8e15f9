"""What comes back of an image through the model's own caption: all of it, if both are right."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_sampler import make_sampler

from rf_jax.evaluation import unified_bench
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator
from rf_jax.scenes import language, render, world

RUNG = world.RUNGS['aligned']
SCENES = [world.make(0, i, RUNG) for i in range(4)]
IMAGES = [render.render(scene, 48) for scene in SCENES]


class Perfect:
    """Says all of a scene, and generates what the caption says."""

    config = make_sampler().config

    def __init__(self, scenes=SCENES):
        self.said = {
            language.captions(scene, RUNG, generator('said', i))[-1].text: render.render(scene, 48)
            for i, scene in enumerate(scenes)
        }

    def caption(self, images):
        assert len(images) == len(self.said)
        return list(self.said)

    def generate(self, captions, seed, sizes, number):
        assert set(sizes) == {(48, 48)} and number == 0
        return [SimpleNamespace(image=self.said[text]) for text in captions]


def mean_colour(images):
    values = np.array([image.reshape(-1, 3).mean(0) for image in images], np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _at_the_size_of_scenes(monkeypatch):
    monkeypatch.setattr(unified_bench.fitting, 'image_size', lambda h, w, config: (h, w))


def test_a_perfect_model_loses_nothing():
    found = unified_bench.evaluate(Perfect(), IMAGES, {'colour': mean_colour}, SCENES)
    values = found.values
    assert values['error'] == [0] * 4 and values['recovered'] == [1] * 4 == values['exact']
    np.testing.assert_allclose(values['similarity']['colour'], 1, atol=1e-6)
    assert values['words'] == [len(text.split()) for text in values['captions']]
    assert found.sheet().shape[2] == 3 and 'exact captions' in found.table()


def test_what_another_scene_shares_is_all_that_counts():
    others = SCENES[1:] + SCENES[:1]
    values = unified_bench.evaluate(Perfect(others), IMAGES, {'a': mean_colour}, SCENES).values
    assert values['exact'] == [0] * 4 and max(values['recovered']) < 1
    assert min(values['error']) > 0.01 and max(values['similarity']['a']) < 1


def spans(values: dict) -> dict[str, str]:
    lines = unified_bench.Result({'similarity': {}} | values, []).table().splitlines()[1:]
    return {line[:32].strip(): line[48:].strip() for line in lines}


def test_one_image_says_nothing_of_others():
    assert spans({'error': [0.1], 'words': [7]}) == {'error of pixels': '-',
                                                     'words of a caption': '-'}  # fmt: skip


def test_intervals_of_few_images_are_not_too_narrow():
    """Student's t; of captions that are all exact, Wilson's interval of a rate."""
    found = spans({'error': [0.1, 0.3], 'exact': [1, 1]})
    half = 12.706 * 0.1  # of two values, one degree of freedom
    assert found['error of pixels'] == f'{0.2 - half:.4f} .. {0.2 + half:.4f}'
    assert found['exact captions'] == '0.3424 .. 1.0000'


def test_another_model_can_describe():
    class Mute(Perfect):
        caption = None

    captioner = Perfect()
    captioner.said = dict(reversed(captioner.said.items()))  # of other images
    found = unified_bench.evaluate(Mute(), IMAGES, {}, SCENES, captioner=captioner).values
    assert found['captions'] == list(captioner.said) and max(found['recovered']) < 1


def test_images_that_are_no_scenes_are_only_compared():
    values = unified_bench.evaluate(Perfect(), IMAGES, {}).values
    assert 'recovered' not in values and 'exact' not in values


def test_the_encoder_of_a_run_compares_place_by_place():
    sampler = make_sampler()
    encode = unified_bench.of_run(sampler)
    side = max(height for height, _ in sampler.config.data.sizes)
    noise = np.random.default_rng(0).integers(256, size=(2, side, side, 3), dtype=np.uint8)
    a, b, again = *encode(noise), encode(noise[:1])[0]
    np.testing.assert_allclose(a @ again, 1, atol=1e-5)
    assert a @ b < 1 - 1e-4


@pytest.mark.parametrize('kind', ['CLIP', 'Dinov2'])
def test_encoders_of_transformers_give_unit_vectors(kind, tmp_path):
    pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    small = {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    vision = small | {'image_size': 32, 'patch_size': 8, 'intermediate_size': 32}
    if kind == 'CLIP':
        text = small | {'intermediate_size': 32, 'vocab_size': 99}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        processor = transformers.CLIPImageProcessor(size={'shortest_edge': 32}, crop_size=32)
    else:
        config = transformers.Dinov2Config(**vision)
        processor = transformers.BitImageProcessor(size={'shortest_edge': 32}, crop_size=32)
    getattr(transformers, f'{kind}Model')(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    name, encode = unified_bench.encoder(f'x={tmp_path}')
    found = encode(IMAGES[:2])
    assert name == 'x' and found.shape == (2, 8 if kind == 'CLIP' else 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found[0] @ found[1] < 1 - 1e-6


@pytest.mark.parametrize(
    ('text', 'message'),
    [('clip', 'expected NAME=FOLDER'), ('a=/nowhere', '/nowhere is not a folder'),
     ('a=', 'expected NAME=FOLDER')],
)  # fmt: skip
def test_a_wrong_encoder_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        unified_bench.encoder(text)


def test_two_encoders_of_one_name_are_an_error(monkeypatch):
    monkeypatch.setattr(unified_bench, 'encoder', lambda text: (text[0], mean_colour))
    assert set(unified_bench.encoders(['a=x', 'b=x'])) == {'a', 'b'}
    with pytest.raises(UserError, match="--encoder=a=y: there are two of the name 'a'"):
        unified_bench.encoders(['a=x', 'a=y'])


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'bad.jpg').write_text('hi')
    with pytest.raises(UserError, match=r'--images: .*bad\.jpg: not an image'):
        unified_bench.read([tmp_path / 'bad.jpg'], 100)


def test_an_empty_folder_is_no_encoder(tmp_path):
    with pytest.raises(UserError, match=r'no run and no model|needs torch and transformers'):
        unified_bench.encoder(f'a={tmp_path}')


def test_both_models_get_the_sampling_of_the_command():
    """max_answer_tokens is of the model that describes."""
    code = (
        'import sys\n'
        'from absl import flags\n'
        'from rf_jax import unified_bench\n'
        'class Sampler:\n'
        '    def load(folder, *_, sampling, **__):\n'
        '        print(folder, sampling)\n'
        '        if folder.endswith("talker"): sys.exit()\n'
        'unified_bench.Sampler = Sampler\n'
        'flags.FLAGS(sys.argv)\n'
        'unified_bench.main(sys.argv)\n'
    )
    given = ['--workdir=/x/painter', '--captioner=/x/talker', '--sampling=max_answer_tokens=9']
    done = subprocess.run([sys.executable, '-c', code, *given], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines == [f"/x/{name} {{'max_answer_tokens': 9}}" for name in ('painter', 'talker')]

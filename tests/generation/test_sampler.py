"""`generate`, `caption` and `answer` are the low-level path, for batches of any length."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_sampler import make_sampler

from rf_jax.data import image_ops
from rf_jax.generation import guidance, image_run, inputs
from rf_jax.generation.chat_programs import ChatPrograms
from rf_jax.generation.sampler import ROWS
from rf_jax.runtime.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def sampler():
    return make_sampler()


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(64, 64), (32, 64)]]


def test_generate_is_the_low_level_path_bit_for_bit(sampler):
    """With the seed of (seed, prompt, number) for each image, of each size."""
    given = [('a red heart', 0, (64, 64)), ('a red heart', 1, (32, 64)), ('flag', 0, (64, 32))]
    requests = [inputs.request(sampler.config, p, 7, n, size) for p, n, size in given]
    patches, codes = sampler._generate(requests, sampler.options(method='heun'))
    generated = sampler.generate(
        [prompt for prompt, *_ in given], 7, [size for *_, size in given], method='heun'
    )
    assert len(generated) == 3
    for each, (prompt, number, size), values, row in zip(generated, given, patches, codes):
        assert (each.prompt, each.seed, each.number) == (prompt, 7, number)
        values = image_ops.unpatchify(values[: size[0] * size[1] // 16**2], *size, 16, 2)
        values = np.clip((values + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(each.image, values)
        assert each.image.shape == (*size, 3) and each.image.std() > 1
        # One token for 2 x 2 patches of 16 pixels.
        assert each.tokens.shape == (size[0] // 32, size[1] // 32)
        assert each.tokens.dtype == np.int32
        np.testing.assert_array_equal(each.tokens.ravel(), row[: each.tokens.size])


def test_an_image_is_there_before_the_next_batch_begins(sampler, monkeypatch):
    batches = []

    def generate(requests, options):
        batches.append(requests)
        return np.zeros((len(requests), 16, 768), np.float32), np.zeros((len(requests), 4))

    monkeypatch.setattr(sampler, '_generate', generate)
    images = sampler.generate_each(['a red heart'] * (2 * ROWS + 1))
    assert next(images).number == 0
    assert len(batches) == 1
    assert [each.number for each in images] == list(range(1, 2 * ROWS + 1))
    assert len(batches) == 3


def test_an_image_chunk_by_chunk_is_that_of_one_program_bit_for_bit(sampler, monkeypatch):
    """With two places of tokens, or two steps of the flow, in a chunk, and fewer in the last."""
    monkeypatch.setattr(image_run, 'CHUNK', 2)
    (whole,) = sampler.generate('a red heart', 7, steps=14)
    request = inputs.request(sampler.config, 'a red heart', 7)
    rows = inputs.generation_rows(
        sampler.config, sampler.tokenizer, sampler.model.channels, [request]
    )
    programs = ChatPrograms(sampler.model, sampler.config, sampler.tokenizer)
    options = sampler.options(steps=14)
    run = image_run.ImageRun(
        *(programs, sampler.params, rows, [request.seed], (64, 64), options, options.weights_of(1))
    )
    tokens, shown = [], []
    while not run.done:
        run.step()
        tokens.append(run.tokens(0).ravel())
        shown.append(run.image(0))
    np.testing.assert_array_equal(shown[-1], whole.image)
    np.testing.assert_array_equal(run.tokens(0), whole.tokens)
    assert len(shown) == 3 + 7
    assert [(each >= 0).sum() for each in tokens[:3]] == [2, 4, 4]
    assert (shown[-2] != whole.image).any()
    # No chunk has a program of its own.
    assert programs.write_tokens._cache_size() == programs.move._cache_size() == 1


def test_images_of_a_run_have_scales_of_their_own(sampler):
    """Without guidance, with a lot of it, and with that of the config."""
    scales = [
        {'guidance_pixels': 1.0, 'guidance_representation': 1.0},
        {'guidance_pixels': 6.0, 'guidance_representation': 4.0},
        {},
    ]
    alone = [sampler.generate('a red heart', 7, **each)[0] for each in scales]
    request = inputs.request(sampler.config, 'a red heart', 7)
    rows = inputs.generation_rows(
        sampler.config, sampler.tokenizer, sampler.model.channels, [request] * 3
    )
    weights = [sampler.options(**each).weights() for each in scales]
    assert weights[0].within(weights[1]) and not weights[1].within(weights[0])
    run = image_run.ImageRun(
        *(ChatPrograms(sampler.model, sampler.config, sampler.tokenizer), sampler.params, rows),
        *([request.seed] * 3, (64, 64), sampler.options()),
        guidance.stacked(weights, sampler.options().weights()),
    )
    while not run.done:
        run.step()
    for number, right in enumerate(alone):
        np.testing.assert_array_equal(run.tokens(number), right.tokens)
        np.testing.assert_allclose(run.image(number).astype(int), right.image, atol=1)
    assert len({each.image.tobytes() for each in alone}) == 3


def test_other_scales_run_the_same_program(sampler):
    sampler.generate('flag', guidance_pixels=2.0)
    (program,) = [sampler._programs[key] for key in sampler._programs if key == sampler.options()]
    before = program._cache_size()
    sampler.generate('flag', guidance_pixels=2.5, guidance_representation=1.5)
    assert program._cache_size() == before


def test_a_string_is_a_list_of_one_and_numbers_count_equal_prompts(sampler):
    (one,) = sampler.generate('a  flag ', seed=3)
    first, second, other = sampler.generate(['a flag', 'a flag', 'flag'], seed=3)
    assert one.prompt == 'a flag' and one.image.shape == (64, 64, 3)
    np.testing.assert_allclose(one.image.astype(int), first.image, atol=1)
    assert [first.number, second.number, other.number] == [0, 1, 0]
    assert (first.image != second.image).any() and (first.image != other.image).any()
    same = sampler.generate(['a flag', 'a flag'], seed=3, number=1)
    for each in same:
        np.testing.assert_allclose(each.image.astype(int), second.image, atol=1)


def test_a_seed_of_numpy_is_the_same_seed(sampler):
    (one,), (other,) = (sampler.generate('flag', seed=seed) for seed in (3, np.int64(3)))
    np.testing.assert_array_equal(one.image, other.image)
    assert type(other.seed) is int


def test_options_change_the_config_for_one_call(sampler):
    plain, steps = sampler.generate('flag'), sampler.generate('flag', steps=3, top_k=None)
    assert (plain[0].image != steps[0].image).any()
    assert sampler.options().steps == sampler.config.sampling.steps == 2


@pytest.mark.parametrize(
    'given, options, message',
    [
        (['flag'], {'step': 3}, r"no option 'step'; options: steps, method, .*interval$"),
        (['flag'], {'steps': 0}, r'sampling\.steps=0'),
        (['flag'], {'size': 64}, r'size=64: expected \(height, width\) in pixels, or .* 1 prompts'),
        (['flag'], {'size': (50, 64)}, r'size=50x64: both sides must be multiples of 32 pixels'),
        (['flag'], {'size': (64, 640)}, r'size=64x640: the longest side may be 128 pixels'),
        (['flag'] * 3, {'size': [(64, 64)] * 2}, r'size=.* for each of 3 prompts'),
        (
            ['flag'] * 3,
            {'number': [0, 1]},
            r'number=\[0, 1\]: expected an integer, or .* 3 prompts',
        ),
        (['flag'], {'number': 0.5}, r'number=0\.5: expected an integer'),
        (['flag'], {'seed': 1.5}, r'seed=1\.5: expected an integer'),
        (['flag', 3], {}, r'prompts contain 3: expected a string or a list of strings'),
        (None, {}, r'prompts=None: expected a string or a list of strings'),
    ],
)
def test_mistakes_are_named_in_one_line(sampler, given, options, message):
    with pytest.raises(UserError, match=message) as error:
        sampler.generate(given, **options)
    assert '\n' not in str(error.value)


def test_a_batch_of_any_length(sampler, images):
    assert sampler.generate([]) == [] and sampler.caption([]) == [] == sampler.answer([], 'why?')
    many = [images[i % 2] for i in range(ROWS + 1)]
    captions = sampler.caption(many)
    assert captions == sampler.caption(images) * (ROWS // 2) + [captions[0]]


def test_jupyter_shows_the_image(sampler):
    (one,) = sampler.generate('flag', seed=1)
    with Image.open(io.BytesIO(one._repr_png_())) as shown:
        np.testing.assert_array_equal(np.asarray(shown), one.image)
    assert repr(one) == "GeneratedImage('flag', seed=1, number=0, 64 x 64 pixels)"


def test_captions_and_answers_are_the_low_level_path(sampler, images):
    questions = ['two small dogs', 'flag']
    decode = sampler.tokenizer.decode
    wanted = [decode(row.tolist()) for row in sampler._answer(list(zip(images, questions)))]
    assert sampler.answer(images, questions) == wanted
    wanted = [decode(row.tolist()) for row in sampler._answer([(p, '') for p in images])]
    assert sampler.caption(images) == wanted == sampler.answer(images, '')


def test_one_image_or_question_stands_for_all(sampler, images):
    one, other = images
    questions = ['two small dogs', 'flag']
    assert sampler.caption(one) == sampler.caption([one])[0]
    assert sampler.answer(one, 'flag') == sampler.answer([one], ['flag'])[0]
    assert sampler.answer(images, 'flag') == sampler.answer(images, ['flag'] * 2)
    assert sampler.answer(one, questions) == sampler.answer([one] * 2, questions)
    with pytest.raises(UserError, match='2 images and 3 questions: give one question for all'):
        sampler.answer(images, ['flag'] * 3)
    with pytest.raises(UserError, match='1 images and 2 questions'):
        sampler.answer([other], ['flag'] * 2)


def test_images_are_taken_as_a_notebook_holds_them(sampler, images, tmp_path):
    image = images[0]
    Image.fromarray(image).save(tmp_path / 'a.png')
    floats, file = image / np.float32(255), tmp_path / 'a.png'
    given = [image, floats, Image.fromarray(image), file, np.dstack([image, image[..., 0]])]
    *same, _ = sampler.caption(given)
    assert len(set(same)) == 1 and same[0]
    assert sampler.caption(floats) == sampler.caption(str(file)) == same[0]
    generated = sampler.generate('flag')
    assert sampler.caption(generated) == [sampler.caption(generated[0])]
    assert sampler.caption(generated[0]) == sampler.caption(generated[0].image)
    with pytest.raises(UserError, match=r'image 2 of 2: float32 values from 0 to 255'):
        sampler.caption([image, image.astype(np.float32)])

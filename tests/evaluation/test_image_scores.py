"""image_scores.py: the libraries' numbers, from the user's files; and what each error says.

The numbers need the extra; the errors do not.
"""

import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from rf_jax.evaluation import image_scores
from rf_jax.evaluation.image_distances import frechet_distance, kernel_distance
from rf_jax.runtime.errors import UserError

COUNT = 12
WORDS = ('red', 'a blue ring', 'green', 'big')


def fill(folder, seed, shapes=((40, 40),) * COUNT):
    """Images of smooth random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number, (height, width) in enumerate(shapes):
        low = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
        low.resize((width, height)).save(folder / f'{number:05d}.png')
    return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp('scores')
    return fill(base / 'made', 1), fill(base / 'real', 2)


@pytest.fixture
def no_extra(monkeypatch):
    for name in ('torch', 'torch_fidelity', 'transformers'):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures('no_extra')
def test_the_extra_is_named_and_only_needed_to_compute(folders, tmp_path):
    with pytest.raises(UserError, match=r"torch_fidelity: pip install 'rf_jax\[image_scores\]'"):
        image_scores.distances(*folders, tmp_path / 'w.pth', subset=COUNT)
    (tmp_path / 'config.json').write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"transformers: pip install 'rf_jax\[image_scores\]'"):
        image_scores.clip_score([], tmp_path)


@pytest.mark.usefixtures('no_extra')
def test_what_is_wrong_with_the_folders_is_said_before_anything_is_loaded(folders, tmp_path):
    made, real = folders

    def refused(match, images=made, reference=real, **options):
        with pytest.raises(UserError, match=match):
            image_scores.distances(images, reference, tmp_path / 'w.pth', **options)

    refused('--reference=.*absent is not a folder', reference=tmp_path / 'absent', subset=2)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'a.txt').write_text('words')
    refused('--images=.*empty has no images', images=tmp_path / 'empty', subset=2)
    refused('one has 1 images.*two or more', images=fill(tmp_path / 'one', 0, [(9, 9)]), subset=2)
    refused(f'has {COUNT} images.*subsets of 1000.*--kid_subset={COUNT} or less')
    other = fill(tmp_path / 'other', 0, [(40, 40), (40, 41)])
    refused('is 40 x 40 and .*00001.png is 40 x 41: .*--size', reference=other, subset=2)
    refused(
        'is 8 x 8 and .*is 40 x 40: ', images=fill(tmp_path / 'small', 0, [(8, 8)] * 3), subset=2
    )
    broken = fill(tmp_path / 'broken', 0)
    (broken / '00003.png').write_text('sorry, an apology')
    refused('--images: .*00003.png: not an image but text', images=broken, subset=2)


def test_prompts_belong_to_the_images_that_benchmarks_writes(tmp_path):
    lines, images = tmp_path / 'prompts.txt', tmp_path / 'out'
    lines.write_text('a cat\na dog\n')
    images.mkdir()
    for name in ('00000_0', '00000_2', '00001_3'):
        (images / f'{name}.png').touch()
    found = image_scores.prompted(images, 'folder', lines)
    assert [(path.stem, text) for path, text in found] == [
        ('00000_0', 'a cat'), ('00000_2', 'a cat'), ('00001_3', 'a dog'),
    ]  # fmt: skip
    lines.write_text('a cat\na dog\na fish\n')
    with pytest.raises(UserError, match=r"no image of the prompt 'a fish': .*00002_0.png is miss"):
        image_scores.prompted(images, 'folder', lines)
    with pytest.raises(UserError, match='--name=dpg has four images in a file'):
        image_scores.prompted(images, 'dpg', lines)


@pytest.mark.usefixtures('no_extra')
@pytest.mark.parametrize(
    'config, said',
    [(None, 'is not a folder with the config.json'), ('{', 'config.json'), ('[]', 'config.json'),
     ('{"model_type": "siglip"}', "type 'siglip', expected \"clip\"")],
)  # fmt: skip
def test_a_folder_of_another_model_is_refused(tmp_path, config, said):
    if config:
        (tmp_path / 'config.json').write_text(config)
    with pytest.raises(UserError, match=f'--clip={tmp_path}.*{said}'):
        image_scores.clip_score([], tmp_path)


@pytest.fixture(scope='module')
def inception(tmp_path_factory):
    """(path of random weights, the network)"""
    fidelity = pytest.importorskip('torch_fidelity', reason='needs the extra image_scores')
    import torch

    class Unloaded(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            """Keeps the random weights."""

    path = tmp_path_factory.mktemp('inception') / 'weights.pth'
    torch.save({}, path)
    torch.manual_seed(0)
    net = Unloaded('inception-v3-compat', ['2048'], feature_extractor_weights_path=str(path))
    for weight in net.parameters():
        if weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight)
    torch.save(net.state_dict(), path)
    return path, net


@pytest.fixture(scope='module')
def scored(folders, inception):
    return image_scores.distances(*folders, inception[0], subset=COUNT)


def test_fid_and_kid_are_those_of_the_features(folders, inception, scored):
    """Computed again from the network's features, by other code."""
    import torch

    made, real = (
        np.concatenate([
            inception[1](torch.from_numpy(np.array(Image.open(path)).transpose(2, 0, 1)[None]))[0]
            for path in sorted(folder.iterdir())
        ])
        for folder in folders
    )  # fmt: skip
    assert scored['fid'] > 0.1 and scored['images'] == scored['reference'] == COUNT
    np.testing.assert_allclose(scored['fid'], frechet_distance(made, real), rtol=1e-3)
    # A subset of all images is the whole set.
    np.testing.assert_allclose(scored['kid'], kernel_distance(made, real), rtol=1e-3)
    assert scored['kid_std'] < 1e-3 * abs(scored['kid'])


def test_a_folder_is_at_no_distance_from_itself(folders, inception, scored):
    values = image_scores.distances(folders[0], folders[0], inception[0], subset=COUNT)
    assert abs(values['fid']) < 1e-3 * scored['fid'] and values['kid'] <= 1e-6
    assert 'FID         ' in image_scores.table(values)


def test_images_of_several_sizes_are_resized_and_cropped(folders, inception, tmp_path, monkeypatch):
    import torch_fidelity

    seen = {}
    keys = ('KEY_METRIC_FID', 'KEY_METRIC_KID_MEAN', 'KEY_METRIC_KID_STD')
    answer = {getattr(torch_fidelity, key): 0.0 for key in keys}
    monkeypatch.setattr(torch_fidelity, 'calculate_metrics', lambda **k: seen.update(k) or answer)
    several = fill(tmp_path / 'several', 3, [(40, 40), (48, 90), (20, 30)])
    image_scores.distances(several, folders[1], inception[0], size=32, subset=2)
    for number in range(3):
        image = Image.open(several / f'{number:05d}.png')
        expected = np.array(ImageOps.fit(image, (32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(seen['input1'][number], expected.transpose(2, 0, 1))
    assert len(seen['input1']) == 3 and len(seen['input2']) == COUNT


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('what', ['absent', 'text', 'other', 'code'])
def test_other_files_than_the_weights_are_refused(folders, inception, tmp_path, what):
    import torch

    path = tmp_path / 'weights.pth'
    if what == 'text':
        path.write_text('not found')
    elif what == 'other':
        torch.save({'fc.weight': torch.zeros(1000, 2048)}, path)
    elif what == 'code':
        torch.save({'fc.weight': Harmful(tmp_path / 'ran')}, path)
    with pytest.raises(UserError, match=f'--inception={path} .*weights-inception-2015-12-05') as e:
        image_scores.distances(*folders, path, subset=COUNT)
    assert '\n' not in str(e.value) and not (tmp_path / 'ran').exists()


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """Folder of a tiny CLIPModel with random weights, and its processor."""
    transformers = pytest.importorskip('transformers', reason='needs the extra image_scores')
    torch = pytest.importorskip('torch', reason='needs the extra image_scores')
    letters = [chr(code) for code in range(ord('a'), ord('z') + 1)]
    words = [*letters, *(f'{letter}</w>' for letter in letters), '<|startoftext|>', '<|endoftext|>']
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=12
    )
    tower = {'hidden_size': 16, 'intermediate_size': 32, 'num_hidden_layers': 1,
             'num_attention_heads': 2}  # fmt: skip
    ends = {'bos_token_id': len(words) - 2, 'eos_token_id': len(words) - 1}
    text = {'vocab_size': len(words), 'max_position_embeddings': 12, **tower, **ends}
    vision = {'image_size': 32, 'patch_size': 16, **tower}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    torch.manual_seed(6)
    model = transformers.CLIPModel(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    size = {'size': {'shortest_edge': 32}, 'crop_size': {'height': 32, 'width': 32}}
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(**size), tokenizer)
    folder = tmp_path_factory.mktemp('clip')
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_clip_score_is_the_cosine_of_each_image_and_its_prompt(folders, clip, monkeypatch):
    import torch
    import transformers

    monkeypatch.setattr(image_scores, '_BATCH', 3)
    model = transformers.CLIPModel.from_pretrained(clip)
    processor = transformers.CLIPProcessor.from_pretrained(clip)
    pairs = list(zip(sorted(folders[0].iterdir()), WORDS))
    cosines = []
    for path, text in pairs:
        inputs = processor(text=[text], images=[Image.open(path)], return_tensors='pt')
        with torch.inference_mode():
            image = model.get_image_features(inputs['pixel_values']).pooler_output[0]
            words = model.get_text_features(inputs['input_ids']).pooler_output[0]
        cosines.append(float(image @ words / image.norm() / words.norm()))
    assert min(cosines) < -0.05 and max(cosines) > 0.05
    values = image_scores.clip_score(pairs, clip)
    expected = 100 * np.maximum(cosines, 0).mean()
    np.testing.assert_allclose(values['clip'], expected, rtol=1e-4)
    assert values['pairs'] == len(WORDS) and values['truncated'] == 0
    assert f'{expected:.2f}' in image_scores.table(values)
    longer = [*pairs, (pairs[0][0], 'a prompt that is too long for it')]
    assert image_scores.clip_score(longer, clip)['truncated'] == 1


def test_weights_that_are_missing_are_not_replaced_by_random_ones(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(clip / 'model.safetensors')
    del state['visual_projection.weight']
    save_file(state, tmp_path / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(UserError, match='its weights have no visual_projection'):
        image_scores.clip_score([], tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    with pytest.raises(UserError, match=f'--clip={tmp_path} cannot be loaded'):
        image_scores.clip_score([], tmp_path)

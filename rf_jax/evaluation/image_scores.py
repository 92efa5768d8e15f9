"""FID, KID and CLIP score of folders of images, computed by torch-fidelity and transformers.

The weights are files of the user: nothing is downloaded. PyTorch is imported only when a score is
asked for.
"""

import importlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from rf_jax.data.image_ops import BadImage, header_size, read_rgb
from rf_jax.evaluation import benchmarks
from rf_jax.evaluation.benchmarks import BENCHMARKS
from rf_jax.runtime.errors import UserError, require

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
SUBSETS = 100  # of KID
_FEATURES = 2048  # of Inception; as many images make the covariance of FID full-rank
_MAX_PIXELS = 2**28
_BATCH = 32
_THREADS = 16  # they wait for the disk


def distances(
    images: Path, reference: Path, weights: Path, size: int = 0, subset: int = 1000
) -> dict[str, float]:
    """`fid`, `kid` and its standard deviation `kid_std` over SUBSETS subsets of `subset` images of
    each folder; and the numbers of `images` and of `reference`.

    `weights`: torch-fidelity's InceptionV3. All images must have one size, unless `size` resizes
    the shorter side to it (bicubic, antialiased) and crops the centre. torch-fidelity resizes to
    299 x 299 as FID's TensorFlow code did: bilinear, without antialiasing. Raises UserError.
    """
    generated, real = image_files(images, 'images'), image_files(reference, 'reference')
    fewest = min(len(generated), len(real))
    found = f'--images={images} has {len(generated)} images, --reference={reference} {len(real)}'
    require(fewest > 1, f'{found}: FID needs two or more of each')
    require(
        fewest >= subset,
        f'{found}, but KID samples subsets of {subset}: give more images, or '
        f'--kid_subset={fewest} or less',
    )
    sizes = _sizes(generated, 'images') | _sizes(real, 'reference')
    if len(sizes) > 1 and not size:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise UserError(
            f'{one} is {first[0]} x {first[1]} and {other} is {second[0]} x {second[1]}: images '
            'of several sizes need --size=PIXELS, which resizes and crops all of them'
        )
    if fewest < _FEATURES:
        logging.warning('%s: FID of fewer than %d is biased upwards, and compares only with that '
                        'of as many', found, _FEATURES)  # fmt: skip
    torch, torch_fidelity = _modules('torch', 'torch_fidelity')
    _check_weights(torch, torch_fidelity, weights)
    logging.info('%s: computing their features', found)
    values = torch_fidelity.calculate_metrics(
        input1=_dataset(torch, generated, 'images', size),
        input2=_dataset(torch, real, 'reference', size),
        cuda=torch.cuda.is_available(),
        fid=True,
        kid=True,
        kid_subsets=SUBSETS,
        kid_subset_size=subset,
        feature_extractor='inception-v3-compat',
        feature_extractor_weights_path=str(weights),
        cache=False,
        save_cpu_ram=True,  # reads in this process: with jax there must be no forks
        verbose=False,
    )
    return {
        'fid': values[torch_fidelity.KEY_METRIC_FID],
        'kid': values[torch_fidelity.KEY_METRIC_KID_MEAN],
        'kid_std': values[torch_fidelity.KEY_METRIC_KID_STD],
        'images': len(generated),
        'reference': len(real),
    }


def prompted(images: Path, name: str, prompts: Path) -> list[tuple[Path, str]]:
    """[(image, its prompt)] as `benchmarks.generate` writes them; some of a prompt's may be absent.

    Raises UserError.
    """
    benchmark = BENCHMARKS[name]
    require(
        not benchmark.grid,
        f'--name={name} has four images in a file, but CLIP score needs one: generate them with '
        'python -m rf_jax.benchmarks --name=folder',
    )
    found = []
    for prompt in benchmarks.read(name, prompts):
        paths = [images / benchmark.path(prompt, n, '') for n in range(benchmark.images)]
        there = [path for path in paths if path.exists()]
        require(bool(there), f'--images={images} has no image of the prompt {prompt.text!r:.80}: '
                             f'{paths[0]} is missing')  # fmt: skip
        found += [(path, prompt.text) for path in there]
    return found


def clip_score(pairs: Sequence[tuple[Path, str]], folder: Path) -> dict[str, float]:
    """`clip`, the mean of max(100 cos, 0) over pairs of an image and a prompt (Hessel et al., arXiv
    2104.08718, with 100 in place of 2.5); the number of `pairs`, and of those whose
    prompt is too long for the model and is truncated, `truncated`.

    `folder`: a CLIPModel and its CLIPProcessor, as save_pretrained writes them. Raises UserError.
    """
    _check_clip(folder)
    torch, transformers = _modules('torch', 'transformers')
    local = {'local_files_only': True}
    try:
        processor = transformers.CLIPProcessor.from_pretrained(folder, **local)
        model, loaded = transformers.CLIPModel.from_pretrained(
            folder, output_loading_info=True, **local
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f'--clip={folder} cannot be loaded: {_line(error)}') from error
    absent = sorted(loaded['missing_keys'])
    require(not absent, f'--clip={folder}: its weights have no {", ".join(absent[:3])}')
    most = model.config.text_config.max_position_embeddings
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = model.to(device).eval()
    cosines, truncated = [], 0
    for start in range(0, len(pairs), _BATCH):
        chunk = pairs[start : start + _BATCH]
        texts = [text for _, text in chunk]
        whole = processor.tokenizer(texts, verbose=False)['input_ids']  # without a warning
        truncated += sum(len(ids) > most for ids in whole)
        inputs = processor(
            text=texts,
            images=[Image.fromarray(_read(path, 'images')) for path, _ in chunk],
            padding=True,
            truncation=True,
            max_length=most,
            return_tensors='pt',
        )
        with torch.inference_mode():
            out = model(**inputs.to(device))
        cosines += (out.image_embeds * out.text_embeds).sum(-1).tolist()
    score = float(np.maximum(100 * np.array(cosines), 0).mean())
    return {'clip': score, 'pairs': len(pairs), 'truncated': truncated}


def table(values: dict[str, float]) -> str:
    """The lines to print, of the values of `distances`, `clip_score` or both."""
    lines = []
    if 'fid' in values:
        lines += [
            f'FID         {values["fid"]:.4f}   ({values["images"]} images, '
            f'{values["reference"]} of reference)',
            f'KID         {values["kid"]:.6f} ± {values["kid_std"]:.6f}   ({SUBSETS} subsets)',
        ]
    if 'clip' in values:
        cut = f', {values["truncated"]} with a truncated prompt' if values['truncated'] else ''
        lines.append(f'CLIP score  {values["clip"]:.4f}   ({values["pairs"]} images{cut})')
    return '\n'.join(lines)


def _modules(*names: str) -> list:
    try:
        return [importlib.import_module(name) for name in names]
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        raise UserError(
            f"image scores need {' and '.join(names)}: pip install 'rf_jax[image_scores]' "
            f'({_line(error)})'
        ) from error


def image_files(folder: Path, flag: str) -> list[Path]:
    """The images below a folder, sorted; files without a suffix of an image are ignored."""
    require(folder.is_dir(), f'--{flag}={folder} is not a folder')
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    require(bool(found), f'--{flag}={folder} has no images: no {", ".join(SUFFIXES)}')
    return found


def _sizes(files: Sequence[Path], flag: str) -> dict[tuple[int, int], Path]:
    """{(height, width): the first file of this size}"""

    def look(path):
        try:
            return header_size(path)
        except BadImage as error:
            raise UserError(f'--{flag}: {path}: {error}') from error

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(zip(pool.map(look, files), files))
    return dict(reversed(found))


def _read(path: Path, flag: str, size: int = 0) -> np.ndarray:
    try:
        rgb = read_rgb(path, _MAX_PIXELS)
    except BadImage as error:
        raise UserError(f'--{flag}: {path}: {error}') from error
    if not size:
        return rgb
    return np.array(ImageOps.fit(Image.fromarray(rgb), (size, size), Image.Resampling.BICUBIC))


def _dataset(torch, files: Sequence[Path], flag: str, size: int):
    """uint8 [3, h, w] tensors."""

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, i):
            return torch.from_numpy(_read(files[i], flag, size).transpose(2, 0, 1).copy())

    return Files()


def _check_weights(torch, torch_fidelity, path: Path) -> None:
    """torch-fidelity unpickles whatever the file holds: first it must hold nothing but tensors."""
    expected = 'weights-inception-2015-12-05-6726825d.pth of torch-fidelity'
    try:
        torch.load(path, map_location='cpu', weights_only=True)
        torch_fidelity.FeatureExtractorInceptionV3(
            'inception-v3-compat', ['2048'], feature_extractor_weights_path=str(path)
        )
    except OSError as error:
        raise UserError(
            f'--inception={path} cannot be read ({error.strerror or error}): expected {expected}'
        ) from error
    except Exception as error:  # of pickle, zip files and modules
        raise UserError(
            f'--inception={path} is not {expected}: {type(error).__name__}: {_line(error)}'
        ) from error


def _check_clip(folder: Path) -> None:
    """transformers would load another kind of model too, with random weights."""
    try:
        kind = json.loads((folder / 'config.json').read_text(encoding='utf-8')).get('model_type')
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f'--clip={folder} is not a folder with the config.json of a CLIPModel: {error}'
        ) from error
    require(kind == 'clip', f'--clip={folder} is a model of type {kind!r}, expected "clip"')


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200]

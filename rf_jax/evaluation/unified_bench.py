"""Images described, and generated again from the model's own descriptions: how much comes back?

As protocol 1 of Unified-Bench (UAE, arXiv 2509.09666): cosines of source and generated image under
several encoders, which should not be those of a reward that the model was trained with.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rf_jax.data import contact_sheet, fitting, image_ops
from rf_jax.evaluation.image_features import Encoder
from rf_jax.evaluation.intervals import student_interval
from rf_jax.evaluation.retrieval import wilson
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import checkpoint, paths
from rf_jax.runtime.errors import UserError, require
from rf_jax.scenes import judge, reading, world

# Unit vectors float32 [n, D] of n images uint8 [h, w, 3] of one size.
Features = Callable[[Sequence[np.ndarray]], np.ndarray]
SHOWN = 12  # images on the sheet
COLUMNS = 6


@dataclass(frozen=True)
class Result:
    """`values`: lists with an entry for each image; `pairs`: (source, generated), uint8 [h, w, 3].

    values['similarity'][encoder]: cosine in [-1, 1]; 'error': mean absolute difference of pixels in
    [0, 1]; 'captions' and their number of 'words'. For scenes also 'recovered', the F1 of their
    objects, and 'exact', 1 if the caption names exactly those.
    """

    values: dict
    pairs: list[tuple[np.ndarray, np.ndarray]]

    def sheet(self) -> np.ndarray:
        """The first images, each beside what came back, with the caption: uint8 [H, W, 3]."""
        shown = list(zip(self.pairs, self.values['captions']))[:SHOWN]
        images = [image for pair, _ in shown for image in pair]
        return contact_sheet.grid(images, COLUMNS, [t for _, text in shown for t in (text, '')])

    def table(self) -> str:
        """Means with 95 % intervals over images: Student's, of exact captions Wilson's; '-' where
        one image says nothing of the others.
        """
        rows = {f'similarity, {k}': v for k, v in self.values['similarity'].items()}
        names = {'error': 'error of pixels', 'recovered': 'objects recovered (F1)',
                 'exact': 'exact captions', 'words': 'words of a caption'}  # fmt: skip
        rows |= {text: self.values[name] for name, text in names.items() if name in self.values}
        lines = [f'{"measure":32s} {"images":>6s} {"mean":>8s} {"95 % interval":>19s}']
        for name, values in rows.items():
            mean, count = float(np.mean(values)), len(values)
            if name == names['exact']:  # of 1s and 0s, which may all be equal
                span = '{:.4f} .. {:.4f}'.format(*wilson(mean, count))
            elif count > 1:
                span = '{:.4f} .. {:.4f}'.format(*student_interval(values))
            else:
                span = '-'
            lines.append(f'{name:32s} {count:6d} {mean:8.4f} {span:>19s}')
        return '\n'.join(lines)


def evaluate(
    sampler: Sampler,
    images: Sequence[np.ndarray],
    encoders: Mapping[str, Features],
    scenes: Sequence[world.Scene] = (),
    seed: int = 0,
    captioner: Sampler | None = None,
) -> Result:
    """Describes `images`, uint8 [h, w, 3], and generates each from its description, in its size.

    `scenes`: what the images show, if they are renderings of scenes. `captioner`: the model that
    describes, if it is another one.
    """
    sizes = [fitting.image_size(*image.shape[:2], sampler.config) for image in images]
    images = [image_ops.resize(image, *size) for image, size in zip(images, sizes)]
    captions = (captioner or sampler).caption(list(images))
    generated = [each.image for each in sampler.generate(captions, seed, sizes, number=0)]
    pairs = list(zip(images, generated))
    values: dict = {'similarity': {}, 'captions': captions}
    for name, features in encoders.items():
        found = [features(pair) for pair in pairs]
        values['similarity'][name] = [float(a @ b) for a, b in found]
    values['error'] = [float(np.mean(np.abs(a.astype(int) - b))) / 255 for a, b in pairs]
    values['words'] = [len(text.split()) for text in captions]
    if scenes:
        values['recovered'] = [
            judge.f1_of_objects(scene.objects, judge.detect(image))
            for scene, image in zip(scenes, generated)
        ]
        values['exact'] = [int(reading.true_of(*each)) for each in zip(captions, scenes)]
    return Result(values, pairs)


def read(files: Sequence[Path], max_pixels: int) -> list[np.ndarray]:
    """The images, uint8 [h, w, 3]. Raises UserError that names a file that cannot be read."""
    found = []
    for path in files:
        try:
            found.append(image_ops.read_rgb(path, max_pixels))
        except image_ops.BadImage as error:
            raise UserError(f'--images: {path}: {error}') from error
    return found


def encoders(texts: Sequence[str]) -> dict[str, Features]:
    """{name: encoder} of texts NAME=FOLDER. Raises UserError, also for two of one name."""
    found: dict[str, Features] = {}
    for text in texts:
        name = text.partition('=')[0]
        require(name not in found, f'--encoder={text}: there are two of the name {name!r}')
        found[name] = encoder(text)[1]
    return found


def encoder(text: str) -> tuple[str, Features]:
    """(name, encoder) of NAME=FOLDER: the folder of a run, or of a model of transformers as
    save_pretrained writes it. Raises UserError.
    """
    name, equals, folder = text.partition('=')
    require(name and equals and folder, f'--encoder={text}: expected NAME=FOLDER')
    path = paths.local(folder, f'--encoder={name}')
    require(path.is_dir(), f'--encoder={text}: {path} is not a folder')
    return name, of_run(Sampler.load(path)) if checkpoint.exists_in(path) else of_hf(path)


def of_run(sampler: Sampler) -> Features:
    """The vision encoder of a run, patch by patch, at the run's sizes."""
    encode = Encoder(sampler, sampler.params)

    def features(images):
        sizes = [fitting.image_size(*image.shape[:2], sampler.config) for image in images]
        return encode([image_ops.resize(image, *size) for image, size in zip(images, sizes)])

    return features


def of_hf(folder: Path) -> Features:
    """The image embedding of a model of transformers: of CLIP's and SigLIP's kind its projection,
    of others the class token. Raises UserError.
    """
    try:
        torch, transformers = map(importlib.import_module, ('torch', 'transformers'))
    except ImportError as error:
        raise UserError(
            f"--encoder: {folder} needs torch and transformers: pip install 'rf_jax[image_scores]'"
        ) from error
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'--encoder: {folder} has no run and no model: {error}'[:300]) from error
    embed = getattr(model, 'get_image_features', None)

    @torch.inference_mode()
    def features(images):
        pixels = processor([Image.fromarray(image) for image in images], return_tensors='pt')
        found = embed(**pixels) if embed else model(**pixels).last_hidden_state[:, 0]
        found = getattr(found, 'pooler_output', found)
        return torch.nn.functional.normalize(found.float(), dim=-1).numpy()

    return features

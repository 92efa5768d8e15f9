"""How the arms of a study differ from the paper's arms of the same name: a section of the report,
so that the two are not compared as if they were the same.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from rf_jax.models import representation

_ALL = (
    'all arms: the language model and the encoder start from random weights, the paper from Qwen3 '
    'and DINOv3. Images are procedural scenes with an exact judge; the paper uses photographs '
    'and GenEval.'
)
# By kind of representation.
_KINDS = {
    'continuous': 'features are predicted by plain squared-error regression, without a head that '
    'samples them. The paper describes its arm as continuous regression and gives a diffusion head '
    'at each position as an example; it does not state whether its figure used one. Regression '
    'predicts the mean of the features that a prompt allows: the collapse of variety is a property '
    'of regression, not of continuous features as such.',
    'alignment': 'the teacher is an encoder that the same small run trains from random weights; '
    "the paper's is pretrained.",
}
_SPACES = {
    'vae': 'latents come from a small autoencoder trained on these scenes alone; the paper uses '
    'those of the pretrained Wan 2.1 VAE.',
}
_QUANTIZER = 'the quantizer assigns codes by `{mode}`, not as printed in the paper (`printed`).'


def differences_from_paper(arms: Iterable[tuple[str, ConfigDict]]) -> str:
    """The Markdown section for arms given as (name, config)."""
    arms_by_note: dict[str, list[str]] = {}
    for name, config in arms:
        mode = config.model.representation.quantizer.mode
        not_printed = representation.of(config).learns_codebook and mode != 'printed'
        for note in (
            _KINDS.get(config.model.representation.kind),
            _QUANTIZER.format(mode=mode) if not_printed else None,
            _SPACES.get(config.model.space),
        ):
            if note:
                arms_by_note.setdefault(note, []).append(name)
    lines = [f'- {", ".join(names)}: {note}' for note, names in arms_by_note.items()]
    return '\n'.join(["## What differs from the paper's arms", '', f'- {_ALL}', *lines])

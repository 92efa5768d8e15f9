"""What a study's arms do otherwise than the paper's of the same name: said in the report, beside
the figures, so that nobody compares the two as if they were one.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from rf_jax.models.representation import choice as representation

_ALL = (
    'all arms: the language model and the encoder start from random weights, the paper from Qwen3 '
    'and DINOv3. Pictures are procedural scenes with an exact judge; the paper has photographs and '
    'GenEval.'
)
# By kind of representation.
_KINDS = {
    'continuous': 'features are predicted by plain squared-error regression, without a head that '
    'draws them. The paper describes its arm as continuous regression and gives as its example a '
    'diffusion head at each position; whether its figure had one is not said outright. Regression '
    'predicts the mean of the features that a prompt allows: the collapse of variety is a property '
    'of it, not of continuous features as such.',
    'alignment': 'the teacher is an encoder that the same small run trains from random weights; '
    "the paper's is pretrained.",
}
_SPACES = {
    'vae': 'latents are of a small autoencoder, trained on these scenes alone; the paper takes '
    'those of the pretrained Wan 2.1 VAE.',
}
_QUANTIZER = 'the quantizer assigns codes by `{mode}`, not by the listing of the paper (`printed`).'


def beside_the_paper(arms: Iterable[tuple[str, ConfigDict]]) -> str:
    """A section of Markdown about (name, config) of each arm."""
    found: dict[str, list[str]] = {}
    for name, config in arms:
        mode = config.model.representation.quantizer.mode
        other = representation.of(config).learns_codebook and mode != 'printed'
        for note in (
            _KINDS.get(config.model.representation.kind),
            _QUANTIZER.format(mode=mode) if other else None,
            _SPACES.get(config.model.space),
        ):
            if note:
                found.setdefault(note, []).append(name)
    lines = [f'- {", ".join(names)}: {note}' for note, names in found.items()]
    return '\n'.join(["## What differs from the paper's arms", '', f'- {_ALL}', *lines])

"""No representation: pixels follow the prompt at once (the paper's plain-pixel baseline)."""

from rf_jax.models.representation.kind import Kind


class NoRepresentation(Kind):
    """The defaults of `Kind`: no tokens, no targets, no loss."""


KIND = NoRepresentation()

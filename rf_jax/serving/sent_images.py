"""Images that were sent to clients, so that they stand as generated when they come back."""

import hashlib
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from rf_jax.data.messages import ImagePart, Message
from rf_jax.generation.generated_image import GeneratedImage

_MOST = 1024


class SentImages:
    """Recognises an image of the assistant by its pixels, and keeps its representation tokens; the
    oldest are forgotten.
    """

    def __init__(self):
        self._tokens: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def keep(self, image: GeneratedImage) -> None:
        """Remembers an image."""
        if image.tokens is not None:
            self._tokens[_digest(image.image)] = image.tokens
        while len(self._tokens) > _MOST:
            self._tokens.popitem(last=False)

    def restored(self, message: Message) -> Message:
        """The message with the images that are known, if it is of the assistant."""
        if message.role != 'assistant':
            return message
        parts = (self._known(p) if isinstance(p, ImagePart) else p for p in message.parts)
        return replace(message, parts=tuple(parts))

    def _known(self, part: ImagePart) -> ImagePart:
        tokens = self._tokens.get(_digest(part.image))
        if tokens is None:
            return part
        return ImagePart(GeneratedImage(part.image, tokens, '', 0))


def _digest(image: np.ndarray) -> bytes:
    found = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(image))
    return found.digest()

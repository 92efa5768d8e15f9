"""Images that were sent to clients, so that they stand as generated when they come back."""

import hashlib
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from rf_jax.data.messages import ImagePart, Message
from rf_jax.generation.generated_image import GeneratedImage

_MOST = 1024


class SentImages:
    """Recognises an image of the assistant by its pixels; the oldest are forgotten."""

    def __init__(self):
        self._images: OrderedDict[bytes, GeneratedImage] = OrderedDict()

    def keep(self, image: GeneratedImage) -> None:
        """Remembers an image."""
        self._images[_digest(image.image)] = image
        while len(self._images) > _MOST:
            self._images.popitem(last=False)

    def restored(self, message: Message) -> Message:
        """The message with the images that are known, if it is of the assistant."""
        if message.role != 'assistant':
            return message
        parts = (
            ImagePart(self._images.get(_digest(part.image), part.image))
            if isinstance(part, ImagePart)
            else part
            for part in message.parts
        )
        return replace(message, parts=tuple(parts))


def _digest(image: np.ndarray) -> bytes:
    found = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(image))
    return found.digest()

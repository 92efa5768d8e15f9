"""Images that were sent to clients, so that they stand as generated when they come back."""

import hashlib
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from rf_jax.data.messages import ImagePart, Message
from rf_jax.generation.generated_image import GeneratedImage

_MOST, _MOST_BYTES = 1024, 2**28  # images, and bytes of their tokens


class SentImages:
    """Recognises an image of the assistant by its pixels, and keeps its representation tokens; the
    least recently used are forgotten first.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES):
        self._tokens: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._most_bytes, self._bytes = most_bytes, 0

    def keep(self, image: GeneratedImage) -> None:
        """Remembers an image."""
        if image.tokens is None:
            return
        digest = _digest(image.image)
        if digest in self._tokens:
            self._bytes -= self._tokens.pop(digest).nbytes
        self._tokens[digest] = image.tokens
        self._bytes += image.tokens.nbytes  # of continuous tokens thousands of times those of codes
        while len(self._tokens) > _MOST or self._bytes > self._most_bytes:
            self._bytes -= self._tokens.popitem(last=False)[1].nbytes

    def restored(self, message: Message) -> Message:
        """The message with the images that are known, if it is of the assistant."""
        if message.role != 'assistant':
            return message
        parts = (self._known(p) if isinstance(p, ImagePart) else p for p in message.parts)
        return replace(message, parts=tuple(parts))

    def _known(self, part: ImagePart) -> ImagePart:
        digest = _digest(part.image)
        if digest not in self._tokens:
            return part
        self._tokens.move_to_end(digest)
        return ImagePart(GeneratedImage(part.image, self._tokens[digest], '', 0))


def _digest(image: np.ndarray) -> bytes:
    found = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(image))
    return found.digest()

"""Images of a prepared set: no larger than training needs, and encoded in one way."""

import io

from PIL import Image

from rf_jax.data import image_ops
from rf_jax.data.records import BadImage
from rf_jax.data.resizing import Resizer, pillow
from rf_jax.preparation.settings import MAX_PIXELS

# Of --encoding: extension of its files, Pillow's format and options. Chroma is not subsampled:
# images are generated as they are stored.
ENCODINGS = {
    'jpeg': ('jpg', 'JPEG', {'quality': 95, 'subsampling': 0}),
    'webp': ('webp', 'WEBP', {'quality': 95}),
}


def fitted(
    data: bytes, size: int, encoding: str, resizer: Resizer = pillow
) -> tuple[bytes, tuple[int, int]]:
    """(encoded image, (height, width) as shown), the longer side at most `size` pixels.

    An image that is small enough and encoded so already is kept byte for byte. Raises BadImage if
    it cannot be decoded or has more than MAX_PIXELS pixels.
    """
    _, name, options = ENCODINGS[encoding]
    with image_ops.opened(data) as image:
        stored = image.size
        if stored[0] * stored[1] > MAX_PIXELS:
            raise BadImage(f'{stored[1]} x {stored[0]} is more than {MAX_PIXELS} pixels')
        if max(stored) <= size and image.format == name:
            rgb = image_ops.upright_rgb(image, MAX_PIXELS)
            turned = rgb.shape[:2] != stored[::-1]
            return data, stored if turned else stored[::-1]
        # A JPEG that is much larger is decoded at a part of its size, twice the new one at least.
        scale = min(1.0, size / max(stored))
        image.draft(None, tuple(max(1, round(2 * side * scale)) for side in stored))
        rgb = image_ops.upright_rgb(image, MAX_PIXELS)
    height, width = rgb.shape[:2]
    scale = min(1.0, size / max(height, width))
    height, width = (max(1, round(side * scale)) for side in (height, width))
    file = io.BytesIO()
    try:
        Image.fromarray(image_ops.resize(rgb, height, width, resizer)).save(file, name, **options)
    except (OSError, ValueError) as error:  # WebP has at most 16,383 pixels a side
        raise BadImage(f'it cannot be encoded as {name}: {error}') from None
    return file.getvalue(), (height, width)

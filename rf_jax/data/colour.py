"""Colour: pixels of any mode and depth, with or without a profile, to sRGB on white.

Not used: gAMA and cHRM of a PNG without a profile. Nearly all files that carry them are sRGB, and
those that are not are often wrong.
"""

import functools
import io

import numpy as np
from absl import logging
from PIL import Image, ImageCms

from rf_jax.data.records import BadImage

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO = 0  # of _PHOTOMETRIC
_SIGNED = 2  # of _SAMPLE_FORMAT
_SPACES = {'RGB': 'RGB', 'L': 'GRAY', 'CMYK': 'CMYK'}  # mode -> colour space of its profiles
_SAME = 2  # of 255; a profile that changes no colour by more is sRGB under another name
_PROFILES = 32  # cached transforms; a data set has few different profiles


def rgb_on_white(image: Image.Image) -> Image.Image:
    """Mode RGB in sRGB, composited on white.

    A profile that is broken, or belongs to another colour mode, is ignored. Raises BadImage where
    it is unclear which value is white.
    """
    profile = image.info.get('icc_profile')
    image = _eight_bits(image)
    if image.mode == 'LAB' or (profile and isinstance(profile, bytes)):
        image = _to_srgb(image, profile)
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image).convert('RGB')
    image.load()
    return image if image.mode == 'RGB' else image.convert('RGB')  # which copies all pixels


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    alpha = None
    if image.has_transparency_data:
        grey = image.mode in ('1', 'L', 'LA')
        image = image.convert('LA' if grey else 'RGBA')
        alpha = image.getchannel('A')
        image = image.convert('L' if grey else 'RGB')
    elif image.mode not in ('L', 'RGB', 'CMYK', 'LAB'):
        image = image.convert('RGB')
    transform = _transform(b'' if image.mode == 'LAB' else profile, image.mode)
    image = ImageCms.applyTransform(image, transform) if transform else image.convert('RGB')
    if alpha:
        image.putalpha(alpha)
    return image


@functools.lru_cache(_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile (b'': CIELAB) to sRGB; None to leave the pixels unchanged."""
    try:
        srgb = ImageCms.createProfile('sRGB')
        source = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile
            else ImageCms.createProfile('LAB')
        )
        if profile and source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source,
            srgb,
            mode,
            'RGB',
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode not in ('RGB', 'L'):
            return transform
        moved = np.asarray(ImageCms.applyTransform(_samples(mode), transform), int)
        same = np.abs(moved - np.asarray(_samples(mode).convert('RGB'))).max() <= _SAME
        return None if same else transform
    except Exception as error:  # a broken profile can raise anything
        logging.log_first_n(
            logging.WARNING,
            'a colour profile is broken (%s): reading its images as sRGB',
            3,
            error,
        )
        return None


def _samples(mode: str) -> Image.Image:
    """All grey levels, or 9 x 9 x 9 colours."""
    if mode == 'L':
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same colours, at 8 bits per channel and without premultiplied alpha."""
    _scale_transparency(image)  # before loading the pixels, which discards how they are stored
    if image.mode.startswith('I') or image.mode == 'F':
        return _deep_grey(image)
    straight = {'La': 'LA', 'RGBa': 'RGBA'}.get(image.mode)
    return image.convert(straight) if straight else image


def _scale_transparency(image: Image.Image) -> None:
    """Pillow scales 2- and 4-bit grey and 16-bit colour to 8 bits, but not the value of the
    transparent colour.
    """
    value, tile = image.info.get('transparency'), getattr(image, 'tile', None)
    if value is None or not tile:
        return
    match tile[0][3]:
        case 'L;2':
            image.info['transparency'] = 85 * value
        case 'L;4':
            image.info['transparency'] = 17 * value
        case 'RGB;16B':
            image.info['transparency'] = tuple(channel >> 8 for channel in value)


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, or of floats, to mode L, or LA if one value is transparent."""
    values = np.asarray(image)
    tags = getattr(image, 'tag_v2', {})
    if image.mode == 'F':
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # nan too
            raise BadImage(f'floating-point pixels range from {low:g} to {high:g}, not 0 to 1')
        grey = (values * 255 + 0.5).astype(np.uint8)
    else:
        white, values = _white(image.mode, image.format, tags, values)
        if values.min() < 0:
            raise BadImage(f'pixels range from {values.min()} to {values.max()}: below 0')
        grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    result = Image.fromarray(grey)
    transparent = image.info.get('transparency')
    if transparent is not None:
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result


def _white(mode: str, format: str | None, tags, values: np.ndarray) -> tuple[int, np.ndarray]:
    """(the value of white, values int64)."""
    bits = tags.get(_BITS, (16 if format or mode != 'I' else 32,))[0]
    signed = tags.get(_SAMPLE_FORMAT, (_SIGNED if bits == 32 and not tags else 1,))[0] == _SIGNED
    if bits == 32 and not signed:
        values = values.view(np.uint32)
    values = values.astype(np.int64)
    white = 2 ** (bits - signed) - 1
    if bits == 32:  # often holds 8- or 16-bit values, which would be black on a 32-bit scale
        white = next((w for w in (255, 65535) if values.max() <= w), white)
    return white, values

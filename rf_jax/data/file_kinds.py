"""Explains files that cannot be read as images, and what the user can do about them."""

import codecs

_AGAIN = 'copy or download it again'
HEAD = 1024  # bytes that are examined

# First bytes -> explanation.
_STARTS = (
    (b'version https://git-lfs.github.com/spec/', 'a Git LFS pointer: run `git lfs pull` for the '
     'image itself'),
    (b'/annex/objects/', 'a git-annex pointer: run `git annex get` for the image itself'),
    (b'\xff\x0a', 'JPEG XL: convert it, as by `djxl IN.jxl OUT.png`'),
    (b'\0\0\0\x0cJXL ', 'JPEG XL: convert it, as by `djxl IN.jxl OUT.png`'),
    (b'%PDF', 'a PDF document: save its pages as PNG'),
    (b'PK\x03\x04', 'a zip archive: unpack it'),
    (b'\x1f\x8b', 'a gzip archive: unpack it'),
    (b'\x1aE\xdf\xa3', 'a video (Matroska or WebM): save its frames as images'),
)  # fmt: skip
# Images that Pillow reads if they are intact.
_IMAGES = (
    (b'\xff\xd8\xff', 'JPEG'),
    (b'\x89PNG', 'PNG'),
    (b'GIF8', 'GIF'),
    (b'RIFF', 'WebP'),
    (b'II*\0', 'TIFF'),
    (b'MM\0*', 'TIFF'),
    (b'BM', 'BMP'),
)
# Brands of an ISO media file (`ftyp`).
_AVIF = (b'avif', b'avis')
_HEIC = (b'heic', b'heix', b'hevc', b'hevx', b'heim', b'heis', b'mif1', b'msf1')


def explain(head: bytes) -> str:
    """One line about a file that cannot be opened as an image, from its first bytes."""
    if not head:
        return f'the file is empty: {_AGAIN}'
    if not head.strip(b'\0'):
        return f'the file starts with {len(head)} bytes of zeros: {_AGAIN}'
    if head[4:8] == b'ftyp':
        return _iso_media(head)
    for start, what in _STARTS:
        if head.startswith(start):
            return what
    for start, format in _IMAGES:
        if head.startswith(start):
            return (
                f'{format} whose header is broken, truncated or of a kind that Pillow does not '
                f'read: {_AGAIN}, or save it as PNG'
            )
    return _text(head) or 'not an image, or its header is broken'


def _iso_media(head: bytes) -> str:
    # The first brand may only say "some image" (mif1); the compatible brands after it say which.
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, head[3], 4))]
    if any(brand in _AVIF for brand in brands):
        return 'AVIF, broken or not read by this Pillow: install pillow>=11.3, or convert it to PNG'
    if any(brand in _HEIC for brand in brands):
        return 'HEIC: convert it to JPEG or PNG, as by `heif-convert IN.heic OUT.jpg`'
    return 'a video (MP4 or QuickTime): save its frames as images'


def _text(head: bytes) -> str | None:
    start = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    if b'<svg' in start:
        return 'SVG, which is not a raster image: save it as PNG'
    if start.startswith((b'<!doctype html', b'<html', b'<head')):
        return (
            'an HTML page, not an image (often the reply of a server that requires a login or '
            'limits requests): download it again'
        )
    try:
        text = codecs.getincrementaldecoder('utf-8')().decode(head)  # may end within a character
    except UnicodeDecodeError:
        return None
    words = ' '.join(text.split())
    return f'not an image but text: {words[:40]!r}' if words.isprintable() else None

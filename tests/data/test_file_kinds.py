"""file_kinds.py: a file that is not an image is identified, with a remedy."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from rf_jax.data import image_ops
from rf_jax.data.records import BadImage


def ftyp(*brands: bytes) -> bytes:
    body = brands[0] + bytes(4) + b''.join(brands[1:])
    return struct.pack('>I', 8 + len(body)) + b'ftyp' + body + bytes(64)


LFS = (
    b'version https://git-lfs.github.com/spec/v1\n'
    b'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n'
)
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>\n'


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (ftyp(b'heic', b'mif1', b'heic'), 'HEIC: convert it to JPEG or PNG'),
        (ftyp(b'mif1', b'mif1', b'heic'), 'HEIC: convert it'),
        (ftyp(b'mif1', b'avif'), 'AVIF'),
        (ftyp(b'isom', b'mp42'), 'a video'),
        (b'\xff\x0a' + bytes(60), 'JPEG XL: convert it, as by `djxl'),
        (b'\0\0\0\x0cJXL \r\n\x87\n' + bytes(60), 'JPEG XL: convert it, as by `djxl'),
        (LFS, 'a Git LFS pointer: run `git lfs pull`'),
        (b'/annex/objects/MD5E-s5--0.jpg\n', 'git annex get'),
        (b'\n<!DOCTYPE html>\n<html><title>Log in</title></html>', 'an HTML page'),
        (b'\xef\xbb\xbf<HTML><body>429</body></HTML>', 'an HTML page'),
        (SVG, 'SVG, which is not a raster image'),
        (b'{"error": "no access"}', """not an image but text: '{"error": "no access"}'"""),
        ('é'.encode() * 3000, "not an image but text: 'é"),
        (b'%PDF-1.7\n', 'a PDF document'),
        (b'PK\x03\x04' + bytes(60), 'a zip archive'),
        (b'', 'the file is empty'),
        (bytes(4096), 'zeros: copy or download it again'),
        (b'\xff\xd8\xff', 'JPEG whose header is broken, truncated'),
        (b'\x89PNG\r\n\x1a\n', 'PNG whose header is broken, truncated'),
        (bytes(range(128, 256)), 'not an image, or its header is broken'),
    ],
    ids=lambda value: value[:12].decode('latin1') if isinstance(value, bytes) else None,
)
def test_each_kind_is_named_with_a_remedy(data, expected, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(data)
    for file in (data, tmp_path / 'a.jpg'):
        with pytest.raises(BadImage) as caught:
            image_ops.header_size(file)
        assert expected in str(caught.value) and '\n' not in str(caught.value)


def test_a_dangling_link_names_its_target(tmp_path):
    (tmp_path / 'a.jpg').symlink_to('../objects/a.jpg')
    with pytest.raises(BadImage, match=r'missing: a link to \.\./objects/a.jpg'):
        image_ops.header_size(tmp_path / 'a.jpg')


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'TIFF'])
def test_a_truncated_file_is_reported_as_truncated(format):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format)
    data = buffer.getvalue()
    with pytest.raises(BadImage, match=r'truncated.*copy or download it again'):
        image_ops.read_rgb(data[: len(data) * 6 // 10], 10**6)

"""Names of images that are URLs: those that hold an image or name a file, and all others."""

import base64
import binascii
import re
from urllib.parse import urlsplit
from urllib.request import url2pathname

_DATA = re.compile(r'data:image/[\w.+-]+;base64,', re.IGNORECASE)
_URL = re.compile(r'data:|\w+://', re.IGNORECASE)


def file_of(name: str) -> str:
    """The path of a file:// URL, or the name as it is. Raises ValueError for other URLs."""
    if name[:7].lower() == 'file://':
        return url2pathname(urlsplit(name).path)
    if _URL.match(name):
        raise ValueError(
            f'the image {name[:40]!r}{"..." * (len(name) > 40)} is a URL; expected a file, as '
            'nothing is fetched'
        )
    return name


def bytes_of(url: str) -> bytes | None:
    """The encoded image of a data URL; None if this is none. Raises ValueError."""
    found = _DATA.match(url)
    if not found:
        return None
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError('the data URL of an image is not valid base64') from None

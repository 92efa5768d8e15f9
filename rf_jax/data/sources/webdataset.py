"""WebDataset tar files, as img2dataset writes them."""

from rf_jax.data.shards.tar_format import Tar
from rf_jax.data.sources.foreign_shards import ForeignShards


class WebdatasetSource(ForeignShards):
    """`webdataset:PATH`: a tar file, a folder of them, `/path/{00000..00099}.tar`, `/path/*.tar`.

    The files of a sample share a name: an image (jpg, png, webp, ...) with its caption in txt or
    json, or a conversation in json with its images (`shards.sample`).
    """

    _make_format = Tar
    _read_as = 'tar'

    def __init__(self, path: str, max_pixels: int):
        super().__init__('webdataset', path, max_pixels, '*.tar')

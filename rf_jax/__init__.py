"""Representation Forcing in JAX: unified multimodal models without a bottleneck.

Shape letters, used in names, einsum strings and docstrings everywhere:

    B  rows of a batch            L  tokens of a row           D  model width
    H  attention heads            F  feed-forward width        E  experts
    K  codebook size              V  vocabulary                N  representation tokens of an image
    P  pixel patches of an image C  channels of a patch (side x side x 3)

Times t run from 0 (noise) to 1 (image). Images are float32 in [-1, 1] inside the model and
uint8 outside. Patches of an image are stored in 2x2 groups: patches 4n .. 4n+3 lie under
representation (or vision) token n, groups in raster order.
"""

__version__ = '0.1.0'

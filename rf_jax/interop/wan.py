"""Wan 2.1's VAE, of one frame: the autoencoder of `model.space='wan'`.

Names of AutoencoderKLWan of diffusers. Its convolutions reach back in time; of a first frame, only
the last slice of a kernel has something to read, and convolutions over time alone are skipped.
"""

from collections.abc import Iterator, Set
from typing import Any

import numpy as np

from rf_jax.interop.family import Config, Family, other_than
from rf_jax.interop.table import Layout, Row
from rf_jax.models.spaces.wan import CHANNELS, MEAN, STD

# The VAE is never trained, so its layouts are only read.
# (F, C, time, 3, 3) or (F, C, 3, 3) to (3, 3, C, F)
CONV = Layout(
    lambda tensor: (tensor[:, :, -1] if tensor.ndim == 5 else tensor).transpose(2, 3, 1, 0)
)
# (F, C, 1, ...) to (C, F)
POINTWISE = Layout(lambda tensor: tensor.reshape(tensor.shape[:2]).T)
CHANNEL = Layout(lambda tensor: tensor.reshape(-1))  # (C, 1, ...) to (C)


def _conv(theirs: str, ours: str, into: int, out: int, *kernel: int) -> Iterator[Row]:
    layout = POINTWISE if set(kernel) == {1} else CONV
    yield Row(f'{theirs}.weight', (out, into, *kernel), f'{ours}/kernel', layout)
    yield Row(f'{theirs}.bias', (out,), f'{ours}/bias')


def _norm(theirs: str, ours: str, width: int, *ones: int) -> Row:
    return Row(f'{theirs}.gamma', (width, *ones), f'{ours}/scale', CHANNEL)


def _residual(theirs: str, ours: str, into: int, out: int) -> Iterator[Row]:
    for i, width in ((1, into), (2, out)):
        yield _norm(f'{theirs}.norm{i}', f'{ours}/norm{i}', width, 1, 1, 1)
        yield from _conv(f'{theirs}.conv{i}', f'{ours}/conv{i}', width, out, 3, 3, 3)
    if into != out:
        yield from _conv(f'{theirs}.conv_shortcut', f'{ours}/conv_shortcut', into, out, 1, 1, 1)


def _middle(theirs: str, ours: str, width: int) -> Iterator[Row]:
    for i in (0, 1):
        yield from _residual(f'{theirs}.resnets.{i}', f'{ours}/resnets_{i}', width, width)
    attention = f'{theirs}.attentions.0'
    yield _norm(f'{attention}.norm', f'{ours}/attention_norm', width, 1, 1)
    yield from _conv(f'{attention}.to_qkv', f'{ours}/conv_qkv', width, 3 * width, 1, 1)
    yield from _conv(f'{attention}.proj', f'{ours}/conv_proj', width, width, 1, 1)


def _ends(tower: str, first: tuple[int, int], last: tuple[int, int]) -> Iterator[Row]:
    """The convolutions (from, to) at both ends, and the norm before the last."""
    ours = f'autoencoder/{tower}'
    yield from _conv(f'{tower}.conv_in', f'{ours}/conv_in', *first, 3, 3, 3)
    yield _norm(f'{tower}.norm_out', f'{ours}/norm_out', last[0], 1, 1, 1)
    yield from _conv(f'{tower}.conv_out', f'{ours}/conv_out', *last, 3, 3, 3)


def _encoder(widths: list[int], base: int, blocks: int) -> Iterator[Row]:
    yield from _ends('encoder', (3, base), (widths[-1], 2 * CHANNELS))
    into, ours = base, 'autoencoder/encoder'
    for level, width in enumerate(widths):
        theirs = 'encoder.down_blocks.{}'.format
        first = level * (blocks + 1)
        for i in range(blocks):
            yield from _residual(theirs(first + i), f'{ours}/down_{level}_{i}', into, width)
            into = width
        if level < len(widths) - 1:
            down = f'{theirs(first + blocks)}.resample.1'
            yield from _conv(down, f'{ours}/conv_down_{level}', width, width, 3, 3)
    yield from _middle('encoder.mid_block', f'{ours}/middle', into)


def _decoder(widths: list[int], base: int, blocks: int) -> Iterator[Row]:
    yield from _ends('decoder', (CHANNELS, widths[-1]), (widths[0], 3))
    into, ours = widths[-1], 'autoencoder/decoder'
    yield from _middle('decoder.mid_block', f'{ours}/middle', into)
    for level, width in enumerate(reversed(widths)):
        theirs = f'decoder.up_blocks.{level}'
        for i in range(blocks + 1):
            yield from _residual(f'{theirs}.resnets.{i}', f'{ours}/up_{level}_{i}', into, width)
            into = width
        if level < len(widths) - 1:
            up = f'{theirs}.upsamplers.0.resample.1'
            yield from _conv(up, f'{ours}/conv_up_{level}', width, width // 2, 3, 3)
            into = width // 2


def _rows(c: Config, names: Set[str]) -> tuple[Row, ...]:
    del names
    base, blocks = c['base_dim'], c['num_res_blocks']
    widths = [base * factor for factor in c['dim_mult']]
    twice = 2 * CHANNELS
    return (
        *_encoder(widths, base, blocks),
        *_conv('quant_conv', 'autoencoder/quant_conv', twice, twice, 1, 1, 1),
        *_conv('post_quant_conv', 'autoencoder/post_quant_conv', CHANNELS, CHANNELS, 1, 1, 1),
        *_decoder(widths, base, blocks),
    )


def _fields(c: Config) -> dict[str, Any]:
    return {
        'model.space': 'wan',
        'model.wan.base_dim': c['base_dim'],
        'model.wan.dim_mult': tuple(c['dim_mult']),
        'model.wan.num_res_blocks': c['num_res_blocks'],
    }


def _refused(c: Config) -> list[str]:
    faults = other_than(c, z_dim=CHANNELS, attn_scales=[], is_residual=False, patch_size=None,
                        decoder_base_dim=None, in_channels=3, out_channels=3)  # fmt: skip
    for name, ours in (('latents_mean', MEAN), ('latents_std', STD)):
        if not np.array_equal(np.float32(c.get(name, ours)), ours):
            faults.append(f'config.json: {name} is not that of Wan 2.1')
    return faults


vae = Family(
    sizes=lambda c: {},
    rows=_rows,
    fields=_fields,
    refused=_refused,
    unused=(r'\.time_conv\.',),
)

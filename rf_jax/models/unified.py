"""The whole model: four streams into one backbone, three heads out (paper, figure 2)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rf_jax.data.batch import Batch
from rf_jax.models import encoders, representation, spaces, transformer
from rf_jax.models.attention import Attention, select
from rf_jax.models.attention.masks import FIELDS
from rf_jax.models.attention.sharded import ShardedAttention
from rf_jax.models.denoiser import PatchIn, PatchOut
from rf_jax.models.layers import REMAT, Head, Logits, Table
from rf_jax.models.representation.kind import Kind
from rf_jax.models.spaces.space import Space
from rf_jax.models.token_sharding import TokenSharding
from rf_jax.models.vision_encoder import Connector
from rf_jax.runtime.errors import choose, require


def to_signed(pixels: jax.Array) -> jax.Array:
    """uint8 images to float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


class Unified(nn.Module):
    """Built by `build(config, vocabulary)`; its methods work on the arrays of `data.batch`.

    `channels`: C of a patch of pixels, `flow_channels`: Z of what the flow generates.
    Streams are named in the order of the row, [text | vision | representation | pixels].
    """

    config: ConfigDict  # config.model
    vocabulary: int
    channels: int
    flow_channels: int
    backbone_of: partial
    kind: Kind  # of representation
    space: Space
    attention: Attention
    sharding: TokenSharding
    dtype: jnp.dtype  # of activations

    def setup(self):
        c = self.config
        width = c.backbone.width
        self.text_embed = Table(self.vocabulary, width)
        self.encoder = encoders.of(c.encoder)(c.encoder, self.attention, self.sharding)
        self.connector = Connector(width)
        self.representation_embed = self.kind.embedding(c)
        self.autoencoder = self.space.codec(
            c, self.channels, self.attention, self.sharding, self.dtype
        )
        self.patch_in = PatchIn(c.denoiser, width)
        self.backbone = self.backbone_of()
        self.text_head = Head(self.vocabulary)
        self.representation_head = self.kind.head(c)
        self.patch_out = PatchOut(self.flow_channels)

    def __call__(self, batch: Batch, tokens, z, t) -> dict:
        """The forward pass of training.

        tokens: inputs of the representation stream [B, R, ...] as its kind embeds them,
        z float32 [B, P, Z] noisy patches or latents, t float32 [B, P] their times. Gives
        `text_logits`, Logits [B, T, V], float32 `x` [B, P, Z], the outputs of the kind's head and
        of the space, and of routed experts `balance` and `router_z` [B, L].
        """
        streams = (
            self.embed_text(batch['text_tokens']),
            self.embed_vision(batch),
            self.embed_representation(tokens, batch['cells']),
            self.embed_patches(z, t, batch['pixel_cells']),
        )
        sizes = text, vision, representation, pixels = [s.shape[1] for s in streams]
        x = self.sharding.join([self.sharding.constrain(s) for s in streams])
        fields = {
            name: self.sharding.interleave(batch[name], sizes) for name in (*FIELDS, 'position')
        }
        prepared, live = self.attention.prepare(fields, fields), fields['segment'] > 0
        lengths = (text + vision, representation, pixels)
        x, losses, _, tapped = self.backbone(x, fields['position'], prepared, lengths, live)
        x = self.sharding.split(x, sizes)
        tapped = None if tapped is None else self.sharding.split(tapped, sizes)[3]
        found = self.representation_head(x[2], tapped)
        found |= self.autoencoder.outputs(*self._clean_patches(batch), batch)
        return {name: self.sharding.deinterleave(a, sizes) for name, a in losses.items()} | {
            'text_logits': self.text_head(x[0]),
            'x': self.patch_out(x[3]),
            **found,
        }

    def _clean_patches(self, batch: Batch):
        """Clean patches [B, P, C] in [-1, 1] of the images to generate, and their places."""
        where = batch['pixel_image'], batch['pixel_coords'], batch['pixel_counts'].shape[1]
        return to_signed(batch['pixels']), where

    def clean(self, batch: Batch) -> jax.Array:
        """What the flow generates, float32 [B, P, Z]: pixels, or the latents of the space."""
        return self.autoencoder.encode(*self._clean_patches(batch))

    def pixels(self, latents: jax.Array, batch: Batch) -> jax.Array:
        """Generated latents [B, P, Z] as patches, float32 [B, P, C] in [-1, 1]."""
        return self.autoencoder.decode(latents, self._clean_patches(batch)[1])

    def embed_text(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, D]."""
        return self.text_embed(tokens).astype(self.dtype)

    def embed_vision(self, batch: Batch) -> jax.Array:
        """Images to read -> vision tokens [B, Vn, D]."""
        if not batch['vision_pixels'].shape[1]:
            shape = *batch['vision_pixels'].shape[:2], self.config.backbone.width
            return jnp.zeros(shape, self.dtype)
        patches = self._standardise(to_signed(batch['vision_pixels']))
        images = batch['vision_counts'].shape[1]
        _, normed = self.encoder(patches, batch['vision_image'], batch['vision_coords'], images)
        scale = self.config.get('vision_gradient_scale', 1.0)  # older runs have none
        if scale != 1.0:
            normed = scale * normed + (1 - scale) * jax.lax.stop_gradient(normed)
        return self.connector(normed)

    def features(self, batch: Batch) -> jax.Array:
        """Encoder features of the clean images to generate: float32 [B, P, Denc].

        From the last layer, before the final norm. Called with the EMA parameters.
        """
        patches, where = self._clean_patches(batch)
        return self.encoder(self._standardise(patches), *where)[0].astype(jnp.float32)

    def _standardise(self, patches: jax.Array) -> jax.Array:
        """What the encoder sees of patches float32 [B, P, C] in [-1, 1]."""
        c, pixels = self.config.encoder, self.channels // 3
        halves = (0.5, 0.5, 0.5)  # older runs have no fields
        mean, std = (np.float32(c.get(name, halves)) for name in ('pixel_mean', 'pixel_std'))
        patches = (patches - np.tile(2 * mean - 1, pixels)) / np.tile(2 * std, pixels)
        return patches.astype(self.dtype)

    def run(self, x, position, prepared, lengths, cache, slots):
        """Backbone on part of a row with a cache of the rest: (hidden, what it keeps of them)."""
        x, _, kept, _ = self.backbone(
            x, position, prepared, lengths, cache=cache, slots=slots, keep=True
        )
        return x, kept

    def embed_representation(self, tokens, cells) -> jax.Array:
        """Tokens [B, n, ...] of the kind and cells int32 [B, n, 2] -> [B, n, D]."""
        return self.representation_embed(tokens, cells).astype(self.dtype)

    def embed_patches(self, z, t, cells) -> jax.Array:
        """[B, P, Z], [B, P], [B, P, 2] -> [B, P, D]."""
        return self.patch_in(z.astype(self.dtype), t, cells)

    def text_logits(self, x) -> jax.Array:
        """[B, T, D] -> float32 [B, T, V]."""
        return self.text_head(x).whole()

    def predict_representation(self, x) -> jax.Array:
        """[B, R, D] -> what the kind predicts, float32 [B, R, ...]; logits are evaluated."""
        (found,) = self.representation_head(x, None).values()
        return found.whole() if isinstance(found, Logits) else found

    def predict(self, x) -> jax.Array:
        """[B, P, D] -> clean patches or latents float32 [B, P, Z]."""
        return self.patch_out(x)


def _check(config: ConfigDict, towers: tuple[str, ...]) -> None:
    """Raises UserError for values of `config.model` that its modules do not check themselves."""
    for name in ('encoder', *towers):
        tower, field = config[name], f'model.{name}'
        encoders.of(tower).check(tower, field)
        require(
            1 <= tower.unroll <= tower.layers,
            f'{field}.layers={tower.layers} and {field}.unroll={tower.unroll}: '
            'need 1 <= unroll <= layers',
        )
        choose(f'{field}.remat', tower.remat, REMAT)
    features, width = config.denoiser.time_embed_dim, config.backbone.width
    require(
        features >= 4 and features % 2 == 0,
        f'model.denoiser.time_embed_dim={features} must be an even number of at least 4',
    )
    require(
        not config.denoiser.sinusoids or width % 4 == 0,
        f'model.backbone.width={width} is not a multiple of 4, as model.denoiser.sinusoids need',
    )


def build(
    config: ConfigDict, vocabulary: int, mesh: Mesh | None = None, platform: str | None = None
) -> Unified:
    """The model of `config.model`; C follows from `config.data.patch_size`. Raises UserError.

    `mesh`: the devices to shard it over; None for one device. `platform`: cpu, gpu or tpu when
    programs are compiled for another than this process runs on.
    """
    kind, space = representation.of(config), spaces.of(config)
    representation.check(config)
    _check(config.model, space.towers)
    platform = platform or jax.default_backend()
    attention, sharding = select.build(config, platform), TokenSharding(mesh)
    if mesh is not None and mesh.size > 1:
        attention = ShardedAttention(attention, mesh)
    tapped_layer = kind.tapped_layer(config.model)
    backbone = transformer.build(config, attention, platform, sharding, tapped_layer)
    return Unified(
        config=config.model,
        vocabulary=vocabulary,
        channels=config.data.patch_size**2 * 3,
        backbone_of=backbone,
        kind=kind,
        space=space,
        flow_channels=space.width(config),
        attention=attention,
        sharding=sharding,
        dtype=jnp.dtype(config.compute_dtype),
    )

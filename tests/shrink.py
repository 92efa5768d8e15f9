"""Any config made tiny, so that a test builds and trains it in seconds."""

import contextlib
import dataclasses
import json
import os
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from rf_jax.data.data_fields import talks

CACHE = os.environ['RF_JAX_TEST_CACHE']  # compiled programs of this test run


def shrink(config: ConfigDict) -> ConfigDict:
    """Changes the config in place and gives it back: small widths, images, rows and steps.

    Choices stay (split, quantizer, losses, dropout, dtype, several sizes or images in a row);
    sizes, the data's location, the mesh and what would write outside of the workdir do not.
    """
    config.steps = 4
    config.compilation_cache = CACHE
    config.initialise_from = ''
    config.lora.rank = 0  # nothing to adapt
    data = config.data
    if talks(config):
        data.sources = 'scenes:aligned/48/conversations/count=100'
    elif 'grpo' in config:
        data.sources = 'scenes:aligned/48/count=100'
    elif ':' in data.sources:  # not on this machine
        data.sources = 'emoji'
    data.batch_size, data.lanes = 8, 1
    data.patch_size, data.max_text_tokens = 16, 16
    data.sizes = ((64, 0.5), (32, 0.5)) if len(data.sizes) > 1 else ((64, 1.0),)
    images = 1 if max(data.capacity.pixel_images, data.capacity.vision_images) == 1 else 2
    drawn = images if data.capacity.pixel_images else 0
    seen = images if data.capacity.vision_images else 0
    data.capacity.update(
        text=96 if talks(config) else 32,
        vision=4 * seen,
        representation=5 * drawn,
        pixels=16 * drawn,
        vision_images=seen,
        pixel_images=drawn,
    )
    if 'grpo' in config:
        config.grpo.update(group_size=2, text_tokens=4)
        config.grpo.flow.update(steps=drawn + 2, stochastic=(0, drawn))
    config.tokenizer.update(vocab_size=384, path='')
    model = config.model
    model.backbone.update(
        layers=2, unroll=1, width=32, heads=2, kv_heads=1, head_dim=16, feedforward=64
    )
    model.backbone.rope_sections = (4, 2, 2)
    model.backbone.moe.update(num_experts=4, top_k=2, feedforward=16)
    model.encoder.update(layers=2, unroll=1, width=32, heads=2, feedforward=64)
    model.representation.update(codebook_size=32, position_grid=4)
    model.denoiser.update(bottleneck=min(model.denoiser.bottleneck, 16), time_embed_dim=16)
    config.optimizer.warmup_steps = 2
    config.offload = ()
    config.mesh.update(data=1, fsdp=-1, expert=1, tensor=1, context=1)
    config.sampling.update(steps=2, max_answer_tokens=4)
    config.log.update(every=1, samples_every=0, samples=2)
    config.checkpoint.update(every=2, keep=2, keep_period=0)
    config.evaluation.samples = 2
    return config


def tiny_run(workdir, changes=None, devices: int = 1):
    """`train_loop.build` of the shrunk base config with {'field.name': value} changed."""
    from configs import base
    from rf_jax.training import train_loop

    config = shrink(base.get_config())
    config.update_from_flattened_dict(changes or {})
    with trained_once():
        return initialised_once(train_loop.build(config, workdir, jax.devices()[:devices]))


_states = {}  # new ones, by the program that computes them


def initialised_once(run):
    """The run; a new state of it is computed only if none of an equal model was, on any mesh. To
    compile that takes seconds. (It is the same on every mesh: test_equal_losses.py.)
    """
    program = run.initialise

    def initialise():
        traced = program.trace().jaxpr
        key = str(traced), *(np.asarray(each).tobytes() for each in traced.consts)
        if key not in _states:
            _states[key] = jax.device_get(program())
        return jax.tree.map(
            lambda held, asked: jax.device_put(held.copy(), asked.sharding),
            *(_states[key], run.abstract),
        )

    run.initialise = initialise
    return run


programs = {}  # of this module of tests, by what they are compiled from


@contextlib.contextmanager
def programs_once():
    """Programs of equal runs are traced and compiled once, which takes seconds. Not for tests that
    replace something in the model or its loss.
    """
    from rf_jax.training import jitted

    build = jitted.build

    def remembered(config, vocabulary, mesh, platform=None, objective_of=None):
        fields = config.to_dict()
        for unused in ('checkpoint', 'log', 'compilation_cache'):
            del fields[unused]
        key = json.dumps(fields, default=str), vocabulary, mesh, platform, objective_of
        if key not in programs:
            own = config.copy_and_resolve_references()
            programs[key] = build(own, vocabulary, mesh, platform, objective_of)
        return dataclasses.replace(programs[key], config=config)

    with mock.patch.object(jitted, 'build', remembered):
        yield


_tokenizers = {}  # the bytes of each, by texts and vocabulary


@contextlib.contextmanager
def trained_once():
    """Equal texts give equal tokenizers, so only the first of them is trained, in a second."""
    from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer

    train = SentencePieceTokenizer.train

    def remembered(texts, vocabulary):
        key = tuple(texts), vocabulary
        if key not in _tokenizers:
            _tokenizers[key] = train(iter(key[0]), vocabulary).model_bytes
        return SentencePieceTokenizer(_tokenizers[key])

    with mock.patch.object(SentencePieceTokenizer, 'train', remembered):
        yield

"""Memory of compiled programs: the peak reported by the compiler, and the buffers at the peak.

`recorded/tpu_step.txt.gz` is what libtpu 0.0.42 made of a train step of a small language model with
94,208 tokens, for one v5e chip of 16.91 GB: 12 layers of 1,024 x 4,096 that are recomputed in the
backward, 32,768 float32 logits a token, and momentum; parameters and momentum donated. The compiler
accepted it, and refused 98,304 tokens.
"""

import gzip
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import paper
from rf_jax.planning import ahead_of_time, hlo_memory
from rf_jax.runtime import hardware
from rf_jax.training.checks import flatten

pytestmark = pytest.mark.usefixtures('optimised')

STEP = gzip.decompress((Path(__file__).parents[1] / 'recorded' / 'tpu_step.txt.gz').read_bytes())
STEP = STEP.decode('utf-8')
V5E = hardware.CHIPS['TPU v5 lite'].memory


def analysis(peak, arguments, outputs, aliases, temporaries, host=(0, 0, 0, 0)):
    """A `memory_analysis()` of libtpu 0.0.42, in units of 10^9 bytes."""
    named = {
        'peak_memory': peak, 'argument_size': arguments, 'output_size': outputs,
        'alias_size': aliases, 'temp_size': temporaries, 'host_argument_size': host[0],
        'host_output_size': host[1], 'host_alias_size': host[2], 'host_temp_size': host[3],
    }  # fmt: skip
    return SimpleNamespace(**{f'{name}_in_bytes': 1e9 * value for name, value in named.items()})


# Programs that libtpu compiled for a v5e, and the bytes they need by their schedule.
COMPILED = {
    'the recorded step': (analysis(16.594, 1.343, 1.342, 1.342, 17.760), 16.594),
    'momentum in the memory of the host': (
        analysis(17.985, 4.496, 4.496, 4.496, 8.993, (4.496, 4.496, 4.496, 0)),
        13.489,
    ),
    'a result in the memory of the host': (
        analysis(24.612, 8.204, 0, 0, 8.204, (0, 8.204, 0, 0)),
        16.408,
    ),
}


@pytest.mark.parametrize('name', COMPILED)
def test_the_peak_of_a_program_that_compiled_is_below_the_memory_of_its_chip(name):
    """Arguments, outputs and temporaries of the recorded step add up to 19.1 of 16.9 GB."""
    memory, needed = COMPILED[name]
    found = hlo_memory.peak(memory, 'tpu')
    assert found < V5E and found == pytest.approx(1e9 * needed, rel=1e-3)


def test_the_compiler_refuses_at_the_same_figure():
    """Peaks grow with the tokens: for 98,304, to the 16.06 GiB that the error message names."""
    message = (
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
        'temporaries (16.06G) exceeds available HBM (15.75G).'
    )
    refused = ahead_of_time.out_of_memory_error('step', message)
    at = {tokens: 1e9 * peak for tokens, peak in ((86_016, 15.285), (94_208, 16.594))}
    a_token = (at[94_208] - at[86_016]) / (94_208 - 86_016)
    expected = at[94_208] + (98_304 - 94_208) * a_token
    assert refused.needs == pytest.approx(expected, rel=1e-3)
    assert refused.has == V5E


def test_a_kernel_that_exceeds_vmem_is_not_reported_as_needing_a_larger_chip():
    message = (
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space '
        'vmem. Used 256.00M of 128.00M vmem. Exceeded vmem capacity by 128.00M.\n\nProgram vmem '
        'requirement 256.00M:\n    scoped          256.00M\n\n  Largest program allocations in '
        'vmem:\n\n  1. Size: 128.00M\n     Operator: op_name="jit(f)/double/pallas_call"\n'
    )
    refused = ahead_of_time.out_of_memory_error('step', message)
    assert not isinstance(refused, ahead_of_time.DoesNotFit)
    for words in ('jit(f)/double/pallas_call', '256.00M of the 128.00M', 'model.attention.block_q'):
        assert words in str(refused)


def test_the_buffers_at_the_peak_add_up_to_it_and_the_logits_are_the_largest():
    buffers = hlo_memory.at_peak(STEP)
    assert sum(buffer.bytes for buffer in buffers) == pytest.approx(16.594e9, rel=0.01)
    logits, kept = buffers[:2]
    assert logits.shape == 'f32[94208,32768]' and logits.op_name == 'jit(step)/jvp()/dot_general'
    assert kept.shape == 'bf16[12,94208,1024]', 'inputs of the layers, kept for the backward pass'


def test_buffers_freed_before_the_peak_are_not_part_of_it():
    """Compiled here: the first array is freed before the second is allocated."""

    def run(x):
        first = jnp.cumsum(jnp.outer(x, x), axis=0)
        small = jnp.cumsum(first[:, 0])
        second = jnp.cumsum(jnp.outer(small, jnp.concatenate([small, small])), axis=1)
        return second.sum(1)

    text = jax.jit(run).lower(jnp.ones(512)).compile().as_text()
    assert 'is_scheduled=true' in text
    whole = [b for b in hlo_memory.at_peak(text) if b.bytes >= 4 * 512 * 512]
    assert whole and {b.bytes for b in whole} == {4.0 * 512 * 1024}


@pytest.mark.parametrize(
    ('op_name', 'field'),
    [
        ("state.opt_state[2].mu['backbone']['layers']['pixels']['up']", 'offload'),
        ("state.ema['encoder']['patch_embed']['kernel']", 'offload'),
        ("state.params['text_head']['kernel']", 'mesh.fsdp'),
        ('jit(step_and_stop)/jvp(loss_text)/shard_map/while', 'mesh.tensor'),
        ('jit(step_and_stop)/jvp(loss_representation)/shard_map/while', 'mesh.tensor'),
        ('jit(step_and_stop)/jvp(Unified)/backbone/broadcast_in_dim', 'model.backbone.remat'),
        ('jit(step_and_stop)/transpose(jvp(Unified))/backbone/while', 'mesh.fsdp'),
        (
            'jit(step_and_stop)/jvp(Unified)/Unified.embed_vision/encoder/broadcast_in_dim',
            'model.encoder.remat',
        ),
        (
            'jit(step_and_stop)/jvp(Unified)/backbone/while/body/closed_call/layers.body/layers/'
            'pixels/pixels._run/shard_map/all_gather',
            'mesh.expert',
        ),
        ('', ''),
    ],
)
def test_each_large_array_is_listed_with_the_field_that_reduces_it(op_name, field):
    fields = flatten(paper.get_config('joint').to_dict())
    buffer = hlo_memory.Buffer(8.0, 'f32[2]', op_name)
    (part,) = hlo_memory.parts([buffer, buffer], fields)
    assert part.field == field and part.bytes == 16


def test_every_advised_field_exists_in_the_config():
    config = paper.get_config('joint')
    for _, _, *fields in hlo_memory.PARTS:
        for field in filter(None, fields):
            assert _has(config, field.split('.')), field


def _has(config, names):
    return not names or (names[0] in config and _has(config[names[0]], names[1:]))


def test_an_exhausted_field_is_not_advised():
    fields = flatten(paper.get_config('joint').to_dict()) | {
        'model.backbone.remat': 'full',
        'offload': ('ema', 'opt_state'),
    }
    names = ('jit(step_and_stop)/jvp(Unified)/backbone/while', "state.ema['connector']")
    buffers = [hlo_memory.Buffer(1.0, 'f32[]', name) for name in names]
    found = {part.field for part in hlo_memory.parts(buffers, fields)}
    assert found == {'mesh.context', 'mesh.fsdp'}

"""Costs read from compiled programs are what the programs do."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from rf_jax.data import typical_row
from rf_jax.models.attention import masks
from rf_jax.planning import ahead_of_time, hlo, hlo_cost
from rf_jax.runtime.mesh import make_mesh

pytestmark = pytest.mark.usefixtures('optimised')

LAYERS, SIDE = 5, 32


@pytest.fixture(scope='module')
def mesh():
    return make_mesh({'data': 2, 'fsdp': 4, 'expert': 1, 'tensor': 1, 'context': 1})


def totals(f, *shapes):
    return hlo_cost.totals(jax.jit(f).lower(*shapes).compile().as_text())


def shape(mesh, dims, *axes):
    return jax.ShapeDtypeStruct(
        dims, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes))
    )


def stack(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()


def test_the_body_of_a_loop_counts_once_per_iteration(mesh):
    found = totals(
        jax.grad(stack, (0, 1)), shape(mesh, (LAYERS, SIDE, SIDE)), shape(mesh, (SIDE, SIDE))
    )
    assert found.flops == 3 * LAYERS * 2 * SIDE**3 and found.unknown == 0


def test_gathers_are_counted_by_the_axes_they_run_over(mesh):
    w = shape(mesh, (LAYERS, SIDE, SIDE), None, 'fsdp')

    def run(w):
        def body(total, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return total + jnp.tanh(whole @ whole), None

        return jax.lax.scan(body, jnp.zeros((SIDE, SIDE)), w)[0]

    found = totals(run, w).collectives
    ((kind, groups),) = found
    assert kind == 'all-gather' and len(groups) == 2 and all(len(g) == 4 for g in groups)
    assert found[kind, groups] == LAYERS * 4 * SIDE**2 * 3 / 4


def test_a_loop_of_unknown_trip_count_counts_as_not_run():
    def run(n, x):
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))[1]

    found = totals(run, jax.ShapeDtypeStruct((), jnp.int32), jnp.ones((SIDE, SIDE)))
    assert found.flops == 0 and found.unknown == 1


# A Pallas kernel with metadata as printed by libtpu 0.0.42; the body is shortened.
KERNEL = r"""HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[256,256]{1,0}}

ENTRY %main.1 (x.1: f32[256,256]) -> f32[256,256] {
  %x.1 = f32[256,256]{1,0:T(8,128)} parameter(0), sharding={replicated}, metadata={op_name="x"}
  ROOT %double.1 = f32[256,256]{1,0:T(8,128)} custom-call(%x.1), custom_call_target="tpu_custom_call", operand_layout_constraints={f32[256,256]{1,0}}, frontend_attributes={kernel_metadata={
"author":"me \"you\"",
"xprof":"{\"block\": \"a\\nb }\"}"
}}, metadata={op_name="jit(f)/outer \"q\"/double/pallas_call" stack_frame_id=3}, backend_config={"flag_configs":[],"custom_call_config":{"body":"TUzvUgFN","cost_estimate":{"flops":"12345","transcendentals":"0","bytes_accessed":"8","remote_bytes_transferred":"0"},"serialization_format":"1"}}
}
"""  # noqa: E501


def test_a_kernel_with_newlines_in_its_metadata_keeps_its_cost_and_name():
    found = hlo_cost.totals(KERNEL)
    ((label, (runs, says)),) = found.kernels.items()
    assert (runs, says) == (1, 12345)
    assert label == 'double [jit(f)/outer "q"/double/pallas_call]'
    assert found.bytes == 2 * 4 * 256**2


def test_a_loop_with_newlines_in_its_metadata_keeps_its_trip_count():
    """Compiled here: XLA writes the trip count of a loop after the attributes from JAX."""

    def run(x):
        with set_xla_metadata(kernel_metadata='{\n"a": 1,\n"b": {"c": "}"}\n}'):
            down = jax.lax.while_loop(
                lambda c: c[0] > 0, lambda c: (c[0] - 1, c[1] @ c[1]), (LAYERS, x)
            )
            return down[1]

    text = jax.jit(run).lower(jnp.ones((SIDE, SIDE))).compile().as_text()
    assert '{\n"a": 1,\n' in text and 'known_trip_count' in text
    found = hlo_cost.totals(text)
    assert found.flops == LAYERS * 2 * SIDE**3 and found.unknown == 0


@pytest.mark.parametrize(
    ('text', 'groups'),
    [
        ('replica_groups={{0,1},{2,3}}, x=1', ((0, 1), (2, 3))),
        ('replica_groups=[2,2]<=[4], x=1', ((0, 1), (2, 3))),
        ('replica_groups=[2,2]<=[2,2]T(1,0), x=1', ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x=1", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a','c'}, x=1", ((0, 1, 2, 3),)),
        ('source_target_pairs={{0,1},{1,0}}, x=1', ((0, 1), (1, 0))),
    ],
)
def test_replica_groups_in_every_notation(text, groups):
    assert hlo.groups_of(text) == groups


def test_a_convolution_does_not_count_padding_and_holes():
    # A batched matrix product as in TPU programs, with batch 4 as a dilated window.
    (out,) = hlo.arrays_of('bf16[4,8,16]{2,1,0}')
    (left,) = hlo.arrays_of('bf16[4,8,32]{2,1,0}')
    (right,) = hlo.arrays_of('bf16[4,32,16]{2,1,0}')
    attributes = 'window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf'
    assert hlo.convolution_flops(out, left, right, attributes) == 2 * 4 * 8 * 32 * 16


def test_array_types_give_bytes_and_memory_space():
    arrays = hlo.arrays_of('(s32[]{:T(128)}, bf16[4,2]{1,0:T(4,128)(2,1)S(1)}, pred[8]{0})')
    assert [a.bytes for a in arrays] == [4, 16, 8]
    assert [a.main for a in arrays] == [True, False, True]


# A layer's slice of a saved stack is read within a fusion's fusion and written beside a product.
SLICES = """HloModule jit_f, is_scheduled=true, entry_computation_layout={()->f32[8,4]{1,0}}

%read.1 (p.1: f32[100,8,8], p.2: s32[]) -> f32[8,8] {
  %p.1 = f32[100,8,8]{2,1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice.1 = f32[1,8,8]{2,1,0} dynamic-slice(%p.1, %p.2, %zero.1, %zero.1), dynamic_slice_sizes={1,8,8}
  ROOT %flat.1 = f32[8,8]{1,0} bitcast(%slice.1)
}

%both.1 (p.3: f32[100,8,8], p.4: f32[8,4], p.5: f32[50,8,4], p.6: s32[]) -> (f32[50,8,4], f32[8,4]) {
  %p.3 = f32[100,8,8]{2,1,0} parameter(0)
  %p.4 = f32[8,4]{1,0} parameter(1)
  %p.5 = f32[50,8,4]{2,1,0} parameter(2)
  %p.6 = s32[] parameter(3)
  %layer.1 = f32[8,8]{1,0} fusion(%p.3, %p.6), kind=kLoop, calls=%read.1
  %y.1 = f32[8,4]{1,0} dot(%layer.1, %p.4), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %row.1 = f32[1,8,4]{2,1,0} bitcast(%y.1)
  %zero.2 = s32[] constant(0)
  %kept.1 = f32[50,8,4]{2,1,0} dynamic-update-slice(%p.5, %row.1, %p.6, %zero.2, %zero.2)
  ROOT %out.1 = (f32[50,8,4]{2,1,0}, f32[8,4]{1,0}) tuple(%kept.1, %y.1)
}

ENTRY %main.1 (a.1: f32[100,8,8], a.2: f32[8,4], a.3: f32[50,8,4], a.4: s32[]) -> (f32[50,8,4], f32[8,4]) {
  %a.1 = f32[100,8,8]{2,1,0} parameter(0)
  %a.2 = f32[8,4]{1,0} parameter(1)
  %a.3 = f32[50,8,4]{2,1,0} parameter(2)
  %a.4 = s32[] parameter(3)
  ROOT %fusion.1 = (f32[50,8,4]{2,1,0}, f32[8,4]{1,0}) fusion(%a.1, %a.2, %a.3, %a.4), kind=kOutput, calls=%both.1
}
"""  # noqa: E501


def test_a_fusion_only_moves_the_slices_it_reads_and_writes():
    found = hlo_cost.totals(SLICES)
    layer, x, y, number = 8 * 8 * 4, 8 * 4 * 4, 8 * 4 * 4, 4
    assert found.bytes == layer + x + number + y + y  # not the 100 and the 50 layers of the stacks
    assert found.flops == 2 * 8 * 8 * 4


# Weights that are brought beside the compute units, whole or in part, before a product reads them.
PREFETCHED = """HloModule jit_f, is_scheduled=true

ENTRY %main.1 (a.1: bf16[64,32], a.2: bf16[8,64]) -> bf16[8,32] {
  %a.1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %a.2 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %copy-start.1 = (bf16[64,32]{1,0:T(8,128)(2,1)S(1)}, bf16[64,32]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a.1)
  %copy-done.1 = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((bf16[64,32]{1,0:T(8,128)(2,1)}), bf16[16,32]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%a.1), slice={[0:16], [0:32]}
  %slice-done.1 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.1)
  ROOT %y.1 = bf16[8,32]{1,0:T(8,128)(2,1)S(1)} dot(%a.2, %copy-done.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""  # noqa: E501


def test_weights_that_are_prefetched_are_read_from_main_memory_once():
    found = hlo_cost.totals(PREFETCHED)
    assert found.bytes == 2 * 64 * 32 + 2 * 16 * 32
    assert found.flops == 2 * 8 * 64 * 32


# A loop whose counter is copied before it starts and after each step, as in large TPU programs.
COPIED = """HloModule jit_f, is_scheduled=true

%body.1 (c.1: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %c.1 = (s32[]{:T(128)}, f32[8,8]{1,0}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  %x.1 = f32[8,8]{1,0} get-tuple-element(%c.1), index=1
  %one.1 = s32[]{:T(128)} constant(1)
  %add.1 = s32[]{:T(128)} add(%n.1, %one.1)
  %copy.1 = s32[]{:T(128)} copy(%add.1)
  %y.1 = f32[8,8]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %after.1 = (s32[]{:T(128)}, f32[8,8]{1,0}) tuple(%copy.1, %y.1)
}

%test.1 (c.2: (s32[], f32[8,8])) -> pred[] {
  %c.2 = (s32[]{:T(128)}, f32[8,8]{1,0}) parameter(0)
  %n.2 = s32[]{:T(128)} get-tuple-element(%c.2), index=0
  %limit.1 = s32[]{:T(128)} constant(25)
  ROOT %lt.1 = pred[]{:T(512)} compare(%n.2, %limit.1), direction=LT
}

ENTRY %main.1 (x.2: f32[8,8]) -> (s32[], f32[8,8]) {
  %x.2 = f32[8,8]{1,0} parameter(0)
  %zero.1 = s32[]{:T(128)} constant(0)
  %copy.2 = s32[]{:T(128)} copy(%zero.1)
  %before.1 = (s32[]{:T(128)}, f32[8,8]{1,0}) tuple(%copy.2, %x.2)
  ROOT %while.1 = (s32[]{:T(128)}, f32[8,8]{1,0}) while(%before.1), condition=%test.1, body=%body.1
}
"""


def test_a_loop_whose_counter_is_copied_keeps_its_trip_count():
    found = hlo_cost.totals(COPIED)
    assert found.unknown == 0 and found.flops == 25 * 2 * 8**3


def test_with_gradient_accumulation_a_run_of_the_attention_kernel_has_a_part_of_the_rows():
    config = base.get_config()
    row = typical_row.row(config)
    whole = ahead_of_time.kernel_flops(config, row, 1, 'tpu')('attention backbone', 0.0)
    config.optimizer.grad_accum_steps = 4
    part = ahead_of_time.kernel_flops(config, row, 1, 'tpu')('attention backbone', 0.0)
    assert whole == 4 * part > 0


def test_attention_on_gpus_computes_the_tiles_of_its_own_kernel():
    config = base.get_config()
    row, model = typical_row.row(config), config.model.backbone
    tokens = {name: row[name][None] for name in masks.FIELDS}
    pairs = masks.tiles(tokens, tokens, 64, 64).sum() * 64**2
    found = ahead_of_time.kernel_flops(config, row, 1, 'gpu')('attention backbone', 0.0)
    assert found == 4 * config.data.batch_size * model.heads * model.head_dim * pairs

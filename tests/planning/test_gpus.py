"""Compile checks for GPUs: devices by name, and costs read from a program for eight H100."""

from types import SimpleNamespace

import gpu_programs
import numpy as np
import pytest
from gpu_programs import HEAD_DIM, HEADS, LAYERS, LENGTH, ROWS, D

from configs import base
from rf_jax.planning import (
    ahead_of_time,
    compile_report,
    gpus,
    hlo_cost,
    hlo_memory,
    roofline,
    topology,
)
from rf_jax.runtime import hardware
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import AXES

pytestmark = pytest.mark.usefixtures('optimised')

H100 = hardware.GPUS['NVIDIA H100']


def test_products_of_cublas_and_attention_of_cudnn_are_counted():
    """Three passes over the products; attention has two products forward and five backward."""
    _, text = gpu_programs.recorded()
    products = 3 * LAYERS * 2 * ROWS * LENGTH * D * 4 * D
    attention = LAYERS * 2 * (2 + 5) * ROWS * HEADS * LENGTH**2 * HEAD_DIM
    assert hlo_cost.totals(text).flops == (products + attention) / 8


def test_attention_of_cudnn_is_counted_whatever_xla_writes_of_its_configuration():
    _, text = gpu_programs.recorded()
    assert 'intermediate_tensor_shape' in text
    other = text.replace('intermediate_tensor_shape', 'another_name')
    assert hlo_cost.totals(other).flops == hlo_cost.totals(text).flops


def test_gathers_and_reductions_that_run_in_the_background_are_counted():
    """Parameters are gathered forward and backward; gradients are reduced once, in bfloat16."""
    _, text = gpu_programs.recorded()
    found = {kind: sent for (kind, _), sent in hlo_cost.totals(text).collectives.items()}
    whole = LAYERS * D * 4 * D * 2
    assert found == {'all-gather': 2 * whole * 7 / 8, 'reduce-scatter': whole * 7 / 8}


def test_the_buffers_at_the_peak_add_up_to_what_xla_allocates():
    memory, text = gpu_programs.recorded()
    estimated = sum(buffer.bytes for buffer in hlo_memory.at_peak(text))
    assert estimated == pytest.approx(hlo_memory.peak(SimpleNamespace(**memory), 'gpu'), rel=0.01)


def mesh(hosts, each, **sizes):
    devices = np.array([SimpleNamespace(process_index=i // each) for i in range(hosts * each)])
    shape = [sizes.get(axis, 1) for axis in AXES]
    return SimpleNamespace(devices=devices.reshape(shape), axis_names=AXES)


@pytest.mark.parametrize(
    ('group', 'links', 'network'),
    [
        (range(8), 8.0 / H100.links, 0.0),
        (range(16), 8.0 / H100.links, 8.0 / 8 / H100.network),  # each GPU sends its share
        ((0, 8), 0.0, 8.0 / H100.network),
    ],
)
def test_gpus_of_a_host_send_over_nvlink_and_hosts_over_the_network(group, links, network):
    sent = {('all-gather', (tuple(group),)): 8.0}
    (row,) = roofline.collectives(sent, mesh(2, 8, data=2, fsdp=8), H100)
    np.testing.assert_allclose((row.links, row.network), (links, network))
    assert roofline.times(1.0, 1.0, [row], H100, 1e15).bound in ('NVLink', 'network')


@pytest.mark.parametrize('name', gpus.KNOWN)
def test_every_gpu_has_a_peak_a_memory_and_a_bandwidth(name):
    device = SimpleNamespace(device_kind=gpus.KNOWN[name].kind)
    assert hardware.peak_flops(device) and hardware.chip(device).bandwidth
    assert f'device_memory_size: {hardware.chip(device).memory / 0.75:.0f}' in (
        gpus.KNOWN[name].target()
    )


@pytest.mark.parametrize('name', ['XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'])
def test_a_program_may_use_the_share_of_memory_that_jax_takes(monkeypatch, name):
    device = SimpleNamespace(device_kind='NVIDIA H100 80GB HBM3')
    for value, share in (('', 0.75), ('.92', 0.92)):
        monkeypatch.setenv(name, value)
        assert hardware.chip(device).memory == share * H100.memory


def test_the_report_says_that_offloading_is_not_counted():
    config = base.get_config()
    config.offload = ('ema', 'opt_state')
    found = ahead_of_time.Cost(
        'train step', 1.0, 1.0, 1e9, 1e9, 0.0, 0.0, 0.0, (), 1e12, None, 1e9, (), None, None, 0
    )
    device = SimpleNamespace(device_kind='NVIDIA H100', platform='gpu')
    one = SimpleNamespace(devices=np.array([device]), shape={'fsdp': 1})
    assert "offload=('ema', 'opt_state') has no effect" in compile_report.table(found, one, config)
    config.offload = ()
    assert 'offload=' not in compile_report.table(found, one, config)


@pytest.mark.parametrize(
    ('name', 'slices', 'words'),
    [
        ('h100', 1, 'give the number of GPUs, as in h100:8, or hosts x GPUs, as in h100:2x8'),
        ('h100:0', 1, 'give the number'),
        ('h100:2x0', 1, 'give the number'),
        ('h100:1x2x8', 1, 'give the number'),
        ('h100:8', 2, 'omit --slices=2'),
        ('h1000:8', 1, 'Known: .*h100:N, h200:N'),
    ],
)
def test_a_wrong_number_of_gpus_is_an_error(name, slices, words):
    with pytest.raises(UserError, match=words):
        topology.devices(name, slices)


@pytest.mark.skipif(gpu_programs.HERE, reason="JAX's plugin for CUDA is installed")
def test_without_the_plugin_the_error_says_how_to_install_it():
    with pytest.raises(UserError, match=r"pip install -e '\.\[gpu\]'\), but no GPU"):
        topology.devices('h100:8')


@pytest.mark.skipif(not gpu_programs.CUDNN, reason='cuDNN is not installed')
@pytest.mark.parametrize('name', gpus.KNOWN)
def test_xla_compiles_for_every_gpu(name):
    devices = topology.devices(f'{name}:2x2')
    assert [device.process_index for device in devices] == [0, 0, 1, 1]
    assert {device.device_kind for device in devices} == {gpus.KNOWN[name].kind}
    assert '__cudnn$fmha' in gpu_programs.compiled(f'{name}:2x2').as_text()


@pytest.mark.skipif(not gpu_programs.HERE, reason="JAX's plugin for CUDA is not installed")
@pytest.mark.parametrize('name', gpus.KNOWN)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_our_kernels_compile_for_every_gpu(name, dtype):
    """Attention and experts, three kernels each, with the FLOPs of the experts' products."""
    found = hlo_cost.totals(gpu_programs.kernels(f'{name}:1', dtype)).kernels
    names = ('attention', 'attention_dq', 'attention_dkv', 'gmm', 'gmm', 'tgmm')
    assert sorted(label.split()[0] for label in found) == sorted(names)
    assert {flops for label, (_, flops) in found.items() if 'gmm' in label} == {2 * 512 * 128 * 96}

"""TPU slices and GPUs by name, as devices to compile for without having them."""

import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from rf_jax.planning import gpus
from rf_jax.runtime.errors import UserError

# Slice sizes by generation; libtpu accepts any size that a real slice can have.
KNOWN = {
    'v5e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    'v5p': ('2x2x1', '2x2x2', '2x2x4', '4x4x4', '4x4x8', '8x8x8', '8x8x16', '8x16x16'),
    'v6e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
}


def known() -> str:
    """The known names as text."""
    slices = [f'{kind}: {", ".join(sizes)}' for kind, sizes in KNOWN.items()]
    others = [f'{kind}:N' for kind in (*gpus.KNOWN, 'cpu')]
    return '; '.join([*slices, ', '.join(others)])


def devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """Devices of `slices` slices of a topology such as 'v5p:8x8x8'; 'h100:8': eight GPUs of a host,
    'h100:2x8': of two; 'cpu:8': 8 CPU devices.

    Raises UserError: the name is unknown (the message lists the known ones), there are too few CPU
    devices, several slices of what has none, or libtpu or the plugin for CUDA is missing.
    """
    kind, _, size = name.partition(':')
    if slices > 1 and (kind == 'cpu' or kind in gpus.KNOWN):
        raise UserError(f'--topology={name} has one slice: omit --slices={slices}')
    if kind in gpus.KNOWN:
        return gpus.devices(name, gpus.KNOWN[kind], size)
    if kind == 'cpu' and re.fullmatch('[1-9][0-9]*', size):
        local = jax.devices('cpu')
        if len(local) < int(size):
            raise UserError(
                f'--topology={name}: there are {len(local)} CPU devices; set XLA_FLAGS='
                f'--xla_force_host_platform_device_count={size} before the command'
            )
        return local[: int(size)]
    if kind not in KNOWN or not re.fullmatch(r'\d+(x\d+){1,2}', size):
        raise UserError(f'--topology={name!r} is not known. Known: {known()}')
    # Set before libtpu is loaded: it must not search for a TPU, nor log the search.
    for variable, value in {
        'TPU_SKIP_MDS_QUERY': '1',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # nothing runs, so sharing is safe
        'TPU_ACCELERATOR_TYPE': f'{kind}-8',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_STDERR_LOG_LEVEL': '3',
        'TPU_MIN_LOG_LEVEL': '3',
    }.items():
        os.environ.setdefault(variable, value)
    more = {'num_slices': slices} if slices > 1 else {}
    if set(size.split('x')) == {'1'}:  # libtpu assumes four chips per host
        more['chips_per_host_bounds'] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(name, 'tpu', **more).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        if any(word in reason for word in ('libtpu', 'plugin', 'not installed')):
            raise UserError(
                f"--topology={name} needs libtpu (pip install -e '.[tpu]', best in a virtual "
                f'environment of its own): {reason}'
            ) from None
        raise UserError(
            f'--topology={name} cannot be created ({reason}). Known: {known()}'
        ) from None

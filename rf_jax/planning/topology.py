"""Devices that are not here: TPU slices by name, to compile for without having them."""

import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from rf_jax.runtime.errors import UserError

# Names that libtpu knows, by generation; any size that a slice can have works.
KNOWN = {
    'v5e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    'v5p': ('2x2x1', '2x2x2', '2x2x4', '4x4x4', '4x4x8', '8x8x8', '8x8x16', '8x16x16'),
    'v6e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
}


def known() -> str:
    """The names, for people."""
    return '; '.join(f'{kind}: {", ".join(sizes)}' for kind, sizes in KNOWN.items()) + '; cpu:N'


def devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """Devices of a topology such as 'v5p:8x8x8', `slices` times; 'cpu:8': the first CPU devices.

    Raises UserError: an unknown name (lists the known), too few CPU devices or several slices of
    them, no libtpu.
    """
    kind, _, size = name.partition(':')
    if kind == 'cpu' and size.isdigit():
        if slices > 1:
            raise UserError(f'--topology={name} is one slice: leave --slices={slices} out')
        here = jax.devices('cpu')
        if len(here) < int(size):
            raise UserError(
                f'--topology={name}: there are {len(here)} CPU devices; set XLA_FLAGS='
                f'--xla_force_host_platform_device_count={size} before the command'
            )
        return here[: int(size)]
    if kind not in KNOWN or not re.fullmatch(r'\d+(x\d+){1,2}', size):
        raise UserError(f'--topology={name!r} is not known. Known: {known()}')
    # Said before libtpu is loaded: no search for a TPU, and no log of that search.
    for variable, value in {
        'TPU_SKIP_MDS_QUERY': '1',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # nothing is run, so nothing is shared
        'TPU_ACCELERATOR_TYPE': f'{kind}-8',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_STDERR_LOG_LEVEL': '3',
        'TPU_MIN_LOG_LEVEL': '3',
    }.items():
        os.environ.setdefault(variable, value)
    more = {'num_slices': slices} if slices > 1 else {}
    if set(size.split('x')) == {'1'}:  # libtpu expects four chips a host unless told
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
        raise UserError(f'--topology={name} cannot be made ({reason}). Known: {known()}') from None

"""Several processes as one run: how they start, share small things, and end.

RF_JAX_COORDINATOR  host:port of process 0, the same everywhere; or `auto` on TPU pods, GKE, Slurm
                    and Open MPI, where JAX finds all three by itself
RF_JAX_PROCESS      this process, from 0 on
RF_JAX_PROCESSES    how many there are

Nothing set is one process, but `auto` under `srun` with several tasks and on GKE's TPU workers.
"""

import ctypes
import itertools
import os
import secrets
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from logging import WARNING, Formatter, getLogger
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jax._src import distributed  # the client of the coordinator has no public name
from jax.sharding import PartitionSpec

from rf_jax.runtime import exits
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.runtime.heartbeat import Watch

VARIABLES = ('RF_JAX_COORDINATOR', 'RF_JAX_PROCESS', 'RF_JAX_PROCESSES')
FIND = 300  # seconds for all processes to find each other
HEARTBEAT = 45  # seconds until JAX itself gives a process up, should our watch be stuck
WAIT = 24 * 3600  # seconds for one process's work that the others wait for; a loss ends it earlier
SHARED = 10.0  # seconds for a file to be seen from another host

Made = TypeVar('Made')
_watch: Watch | None = None
_shared = 0  # how many values have been shared


def arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Of jax.distributed.initialize; None for a single process.

    Raises:
      UserError: some of the variables are missing, or no numbers, or out of range.
    """
    coordinator = environment.get('RF_JAX_COORDINATOR', '')
    if not coordinator:
        tasks = environment.get('SLURM_STEP_NUM_TASKS', '1')  # set by srun, not in a batch script
        workers = environment.get('TPU_WORKER_HOSTNAMES', '')
        coordinator = 'auto' if tasks != '1' or ',' in workers else ''
    if not coordinator:
        return None
    if coordinator == 'auto':
        return {}
    given = {name: environment.get(name, '') for name in VARIABLES}
    shown = ' '.join(f'{name}={value}' for name, value in given.items())
    host, _, port = coordinator.rpartition(':')
    try:
        index, count = int(given['RF_JAX_PROCESS']), int(given['RF_JAX_PROCESSES'])
        right = host and 0 < int(port) < 65536 and 0 <= index < count
    except ValueError:
        right = False
    if not right:
        raise UserError(
            f'{shown}: expected host:port of process 0, the number of this process from 0 on, and '
            'how many there are, as in RF_JAX_COORDINATOR=10.0.0.1:8476 RF_JAX_PROCESS=0 '
            'RF_JAX_PROCESSES=4; on TPU pods and Slurm RF_JAX_COORDINATOR=auto is enough'
        )
    return {
        'coordinator_address': coordinator,
        'process_id': index,
        'num_processes': count,
        'cluster_detection_method': 'deactivate',
    }


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes, if there are any; before anything else is asked of JAX.

    Raises:
      UserError: wrong variables.
      Unavailable: the others cannot be found.
    """
    found = arguments(environment)
    if found is None:
        if jax.process_count() > 1:
            raise UserError(
                f'this machine is one of {jax.process_count()} of a pod: set '
                'RF_JAX_COORDINATOR=auto on each of them'
            )
        return
    # SIGTERM is ours: the training loop agrees on a step to stop after (loop.train).
    jax.config.update('jax_enable_preemption_service', False)
    where = found.get('coordinator_address', 'found by JAX')
    getLogger('jax._src.distributed').setLevel(WARNING)  # our own line below says more
    _delay_abort()
    late = threading.Timer(FIND, _too_late, [where])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **found, heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=FIND + 10
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise Unavailable(
            f'the processes cannot be joined (coordinator {where}): {str(error).splitlines()[0]}'
        ) from None
    late.cancel()
    _begin_watch()
    logging.info(
        '%d processes, %d devices; this is process %d on %s',
        *(jax.process_count(), jax.device_count(), jax.process_index(), socket.gethostname()),
    )


def _delay_abort() -> None:
    """Keeps a process that JAX's C++ aborts alive for 6 s, for the watch to say in words why.

    The handler is the C function `sleep`, called with the signal's number, SIGABRT = 6, as seconds;
    when it returns, the abort goes on.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _too_late(where: str) -> None:
    told = f'not all processes came within {FIND} s (coordinator {where}). Are all of them started'
    exits.leave(exits.FAULT, f'error: {told}, and is its port open between the hosts?')


def _begin_watch() -> None:
    global _watch
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return
    joined = distributed.global_state
    host, _, port = joined.coordinator_address.rpartition(':')
    address = host.strip('[]'), int(port)
    _watch = Watch(joined.client, index, count, socket.gethostname(), address)
    _watch.start()
    if index:  # the first one tells the progress, the others what is wrong with them
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_handler().setFormatter(Formatter(f'process {index}: %(message)s'))


def finish() -> None:
    """Waits for all others to finish too; nobody is missed after that."""
    if _watch:
        distributed.global_state.client.wait_at_barrier('rf_jax/end', WAIT * 1000)
        _watch.stop()


def abandon(error: BaseException, code: int) -> None:
    """Ends all processes with this code because of an error; returns if there are no others."""
    if not _watch:
        return
    sure = isinstance(error, UserError | KeyboardInterrupt)
    told = str(error).strip().split('\n')[0] if isinstance(error, UserError) else _first(error)
    trace = '' if sure else ''.join(traceback.format_exception(error))
    _watch.report(told, sure, code, trace)
    time.sleep(40)  # the watch ends this process as soon as it is known which one is to blame
    exits.leave(code, f'{trace}error: {told}')


def _first(error: BaseException) -> str:
    line = str(error).strip().split('\n')[0]
    return f'{type(error).__name__}: {line[:200]}' if line else type(error).__name__


def first() -> bool:
    """Whether this process is the one that writes and logs."""
    return jax.process_index() == 0


def from_first(make: Callable[[], bytes]) -> bytes:
    """What `make` gives in process 0, in all of them; at most a few MB. All must call it."""
    global _shared
    if jax.process_count() == 1:
        return make()
    _shared += 1
    client, key = distributed.global_state.client, f'rf_jax/shared/{_shared}'
    if not first():
        return client.blocking_key_value_get_bytes(key, WAIT * 1000)
    value = make()
    client.key_value_set_bytes(key, value)
    return value


def first_alone(make: Callable[[], Made]) -> Made:
    """`make()` in process 0, and then in the others, which find what it left on a shared disk."""
    made = make() if first() else None
    from_first(bytes)  # nothing to say but that it is done
    return made if first() else make()


def gather(text: str) -> list[str]:
    """A text of every process, by their number. All must call it; small and rare things only."""
    global _shared
    _shared += 1
    client, key = distributed.global_state.client, f'rf_jax/gather/{_shared}'
    client.key_value_set(f'{key}/{jax.process_index()}', text)
    client.wait_at_barrier(key, WAIT * 1000)
    found = {int(k.rpartition('/')[2]): v for k, v in client.key_value_dir_get(key)}
    return [found[i] for i in range(jax.process_count())]


def connect(mesh: jax.sharding.Mesh) -> None:
    """Connects the processes along all axes of the mesh, at one moment. All must call it.

    On CPUs two processes find each other at their first common sum, and wait only 30 s for it; the
    sums of the first step would be minutes apart where one process compiles slower.
    """
    if jax.process_count() == 1 or jax.default_backend() != 'cpu':
        return
    gather('')  # all are here
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    some = [names for n in range(1, len(axes) + 1) for names in itertools.combinations(axes, n)]

    def sums(x):
        return [jax.lax.psum(x, names) for names in some]

    each = PartitionSpec()
    total = jax.shard_map(sums, mesh=mesh, in_specs=each, out_specs=each, check_vma=False)
    jax.block_until_ready(jax.jit(total)(np.float32(1)))


def check_shared(folder: Path) -> None:
    """Raises UserError unless all processes see the same folder. All must call it."""
    if jax.process_count() == 1:
        return

    def touch() -> bytes:
        name = f'.shared.{secrets.token_hex(8)}'
        (Path(folder) / name).touch()  # before anybody asks for it: a "no" would be remembered
        return name.encode()

    probe = Path(folder) / from_first(touch).decode()
    until = time.monotonic() + SHARED  # a network file system may show it late
    while not (seen := probe.exists()) and time.monotonic() < until:
        os.scandir(probe.parent).close()  # asks the server anew
        time.sleep(0.1)
    blind = [str(i) for i, told in enumerate(gather(str(seen))) if told != 'True']
    if first():
        probe.unlink()
    if blind:
        raise UserError(
            f'--workdir={folder} is not shared between the hosts: process {", ".join(blind)} '
            'cannot see what process 0 writes there. Give a folder of a network file system'
        )


def check_same(text: str, field: str) -> None:
    """Raises UserError, naming the field, unless all processes say the same. All must call it."""
    if jax.process_count() == 1:
        return
    told = gather(text)
    for i, other in enumerate(told):
        if other != told[0]:
            raise UserError(
                f'{field} is not the same on all hosts. Process 0 has {told[0]}; process {i} has '
                f'{other}. Is something missing or not readable there?'
            )


def agreed(asked: bool, told: bool) -> bool:
    """Whether to stop: this process's own wish if it is alone, else what all were told alike."""
    return told if jax.process_count() > 1 else asked

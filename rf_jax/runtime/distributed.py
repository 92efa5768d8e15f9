"""Multi-process runs: starting them, exchanging small values, and ending them together.

RF_JAX_COORDINATOR  host:port of process 0, the same on all hosts; or `auto` on TPU pods, GKE, Slurm
                    and Open MPI, where JAX detects all three values
RF_JAX_PROCESS      index of this process, from 0
RF_JAX_PROCESSES    number of processes

With none of them set, the run has one process, except that `srun` with several tasks and GKE's TPU
workers default to `auto`.
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
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jax._src import distributed  # the coordinator's client has no public API
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from rf_jax.runtime import errors, paths, storage
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.runtime.heartbeat import Heartbeat

VARIABLES = ('RF_JAX_COORDINATOR', 'RF_JAX_PROCESS', 'RF_JAX_PROCESSES')
JOIN_TIMEOUT = 300  # seconds for all processes to connect
JAX_HEARTBEAT = 45  # seconds until JAX itself gives up on a process, if our heartbeat hangs
WAIT = 24 * 3600  # seconds to wait for another process; losing it ends the wait earlier
VISIBLE = 10.0  # seconds for a file to become visible on another host

T = TypeVar('T')
_heartbeat: Heartbeat | None = None
_exchanges = 0  # number of values exchanged so far, for unique keys


def arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize, read from the environment; None: one process.

    Raises:
      UserError: a variable is missing, not a number or out of range.
    """
    coordinator = environment.get('RF_JAX_COORDINATOR', '')
    if not coordinator:
        tasks = environment.get('SLURM_STEP_NUM_TASKS', '1')  # set by srun, not by sbatch
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
        valid = host and 0 < int(port) < 65536 and 0 <= index < count
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            f'{shown}: expected host:port of process 0, the index of this process from 0, and '
            'the number of processes, as in RF_JAX_COORDINATOR=10.0.0.1:8476 RF_JAX_PROCESS=0 '
            'RF_JAX_PROCESSES=4; on TPU pods and Slurm RF_JAX_COORDINATOR=auto is enough'
        )
    return {
        'coordinator_address': coordinator,
        'process_id': index,
        'num_processes': count,
        'cluster_detection_method': 'deactivate',
    }


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Connects to the other processes, if there are any; call before any other use of JAX.

    Raises:
      UserError: wrong environment variables.
      Unavailable: the other processes cannot be reached.
    """
    given = arguments(environment)
    if given is None:
        if jax.process_count() > 1:
            raise UserError(
                f'this machine is one of {jax.process_count()} of a pod: set '
                'RF_JAX_COORDINATOR=auto on all of them'
            )
        return
    # We handle SIGTERM: all processes stop after the same step (train_loop.train).
    jax.config.update('jax_enable_preemption_service', False)
    where = given.get('coordinator_address', 'detected by JAX')
    getLogger('jax._src.distributed').setLevel(WARNING)  # we log a more useful line below
    _delay_abort()
    late = threading.Timer(JOIN_TIMEOUT, _too_late, [where])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=JAX_HEARTBEAT,
            initialization_timeout=JOIN_TIMEOUT + 10,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise Unavailable(
            f'the processes cannot connect (coordinator {where}): {str(error).splitlines()[0]}'
        ) from None
    late.cancel()
    _start_heartbeat()
    logging.info(
        '%d processes, %d devices; this is process %d on %s',
        *(jax.process_count(), jax.device_count(), jax.process_index(), socket.gethostname()),
    )


def _delay_abort() -> None:
    """Delays an abort in JAX's C++ code by 6 s, so that the heartbeat can print the reason first.

    The handler is the C function `sleep`: it receives the signal number, SIGABRT = 6, as its
    seconds, and the abort continues when it returns.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _too_late(where: str) -> None:
    message = f'not all processes connected within {JOIN_TIMEOUT} s (coordinator {where}). '
    message += 'Are all of them started, and is its port open between the hosts?'
    errors.exit_now(errors.FAILURE, f'error: {message}')


def _start_heartbeat() -> None:
    global _heartbeat
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return
    joined = distributed.global_state
    host, _, port = joined.coordinator_address.rpartition(':')
    address = host.strip('[]'), int(port)
    _heartbeat = Heartbeat(joined.client, index, count, socket.gethostname(), address)
    _heartbeat.start()
    if index:  # process 0 logs progress, the others only warnings
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_handler().setFormatter(Formatter(f'process {index}: %(message)s'))


def finish() -> None:
    """Waits for all processes to finish, then stops the heartbeat."""
    if _heartbeat:
        distributed.global_state.client.wait_at_barrier('rf_jax/end', WAIT * 1000)
        _heartbeat.stop()


def abort(error: BaseException, code: int) -> None:
    """Ends all processes with this exit code after an error; returns if there is only one."""
    if not _heartbeat:
        return
    sure = isinstance(error, UserError | KeyboardInterrupt)
    reason = (
        str(error).strip().split('\n')[0] if isinstance(error, UserError) else _first_line(error)
    )
    trace = '' if sure else ''.join(traceback.format_exception(error))
    _heartbeat.report(reason, sure, code, trace)
    time.sleep(40)  # the heartbeat ends this process once the cause is known
    errors.exit_now(code, f'{trace}error: {reason}')


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split('\n')[0]
    return f'{type(error).__name__}: {line[:200]}' if line else type(error).__name__


def is_main() -> bool:
    """Whether this is process 0, the one that writes files and logs progress."""
    return jax.process_index() == 0


def broadcast(make: Callable[[], bytes]) -> bytes:
    """Returns `make()` of process 0 on all processes; at most tens of MB. All must call it."""
    global _exchanges
    if jax.process_count() == 1:
        return make()
    _exchanges += 1
    client, key = distributed.global_state.client, f'rf_jax/shared/{_exchanges}'
    if not is_main():
        return client.blocking_key_value_get_bytes(key, WAIT * 1000)
    value = make()
    client.key_value_set_bytes(key, value)
    return value


def main_first(make: Callable[[], T]) -> T:
    """Runs `make()` in process 0 first; the others then find the files it left on a shared disk."""
    value = make() if is_main() else None
    broadcast(bytes)  # an empty value: a barrier
    return value if is_main() else make()


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, by process index; for small, rare values. All must call it."""
    global _exchanges
    _exchanges += 1
    client, key = distributed.global_state.client, f'rf_jax/gather/{_exchanges}'
    client.key_value_set(f'{key}/{jax.process_index()}', text)
    client.wait_at_barrier(key, WAIT * 1000)
    texts = {int(k.rpartition('/')[2]): v for k, v in client.key_value_dir_get(key)}
    return [texts[i] for i in range(jax.process_count())]


def connect(mesh: jax.sharding.Mesh) -> None:
    """Opens the connections along all mesh axes at the same time. All must call it.

    On CPUs two processes connect at their first common collective, with a timeout of 30 s. Without
    this, that would be in the first step, which processes can reach minutes apart if one compiles
    more slowly.
    """
    if jax.process_count() == 1 or jax.default_backend() != 'cpu':
        return
    gather_texts('')  # a barrier
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    groups = [names for n in range(1, len(axes) + 1) for names in itertools.combinations(axes, n)]

    def sums(x):
        return [jax.lax.psum(x, names) for names in groups]

    replicated = PartitionSpec()
    total = jax.shard_map(
        sums, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
    )
    jax.block_until_ready(jax.jit(total)(np.float32(1)))


def check_shared(folder: paths.AnyPath) -> None:
    """Raises UserError unless all processes see the same folder. All must call it."""
    if jax.process_count() == 1:
        return

    def touch() -> bytes:
        name = f'.shared.{secrets.token_hex(8)}'
        storage.write(folder / name, b'')  # before any lookup: network file systems cache misses
        return name.encode()

    probe = folder / broadcast(touch).decode()
    until = time.monotonic() + VISIBLE  # network file systems may show it late
    while not (seen := storage.exists(probe)) and time.monotonic() < until:
        storage.names(folder)  # refreshes the client's cache
        time.sleep(0.1)
    blind = [str(i) for i, text in enumerate(gather_texts(str(seen))) if text != 'True']
    if is_main():
        storage.delete(probe)
    if blind:
        raise UserError(
            f'--workdir={folder} is not shared between the hosts: process {", ".join(blind)} '
            'cannot see what process 0 writes there. Give a folder on a network file system'
        )


def check_same(text: str, field: str, error: type[UserError] = UserError) -> None:
    """Raises `error`, naming the field, if the texts of processes differ. All must call it."""
    if jax.process_count() == 1:
        return
    texts = gather_texts(text)
    for i, other in enumerate(texts):
        if other != texts[0]:
            raise error(
                f'{field} is not the same on all hosts. Process 0 has {texts[0]}; process {i} has '
                f'{other}. Is a file missing or unreadable there?'
            )


def on_any(flag: bool) -> bool:
    """Whether the flag of any process is set. All must call it."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def agreed(local: bool, common: bool) -> bool:
    """Whether to stop: this process's own flag if it is the only one, else the common decision."""
    return common if jax.process_count() > 1 else local

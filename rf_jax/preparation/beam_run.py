"""Runs work over numbered units with Apache Beam, on this machine or on any of its runners."""

import contextlib
import difflib
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.transforms import environments

from rf_jax.preparation import local_worker
from rf_jax.runtime import errors
from rf_jax.runtime.errors import UserError

_LOCAL = 'DirectRunner'


class Work(Protocol):
    """Pickled, and started once in every process that does a part of it."""

    def start(self) -> Callable[[int], None]: ...


class _Do(beam.DoFn):
    def __init__(self, work: Work):
        self._work = work

    def setup(self) -> None:
        self._do = self._work.start()

    def process(self, number: int) -> None:
        self._do(number)


class Runner:
    """Runs work with the flags of Beam that were given, by default with `workers` processes here.

    Raises UserError for a flag that Beam does not know.
    """

    def __init__(self, flags: Sequence[str], workers: int):
        self._flags, self._workers = list(flags), workers
        given = [f.partition('=')[2] for f in flags if f.startswith('--runner=')]
        self.local = not given or given[-1] == _LOCAL
        if self.local:
            _refuse_unknown(flags)

    def run(self, work: Work, numbers: Sequence[int]) -> None:
        """Returns when all is done. Raises UserError where the work does, or a process dies."""
        if not numbers:
            return
        with _worker_deaths_end_the_run():
            try:
                with self._pipeline(len(numbers)) as begin:
                    begin | beam.Create(list(numbers)) | beam.ParDo(_Do(work))
            except Exception as error:
                raise _unwrapped(error) from error

    def _pipeline(self, units: int) -> beam.Pipeline:
        if not self.local:
            return beam.Pipeline(options=PipelineOptions(self._flags))
        logging.getLogger('apache_beam').setLevel(logging.CRITICAL)  # errors are raised too
        processes = min(self._workers, units)
        # Not by the name DirectRunner, which downloads another runner, Prism, where it can.
        runner = fn_runner.FnApiRunner(_environment() if processes > 1 else None)
        flags = [f'--direct_num_workers={processes}', *self._flags]
        return beam.Pipeline(runner, PipelineOptions(flags))


def _environment() -> environments.Environment:
    """Of worker processes; `exec` replaces the shell that Beam starts them with."""
    program = f'{shlex.quote(sys.executable)} -m {local_worker.__name__}'
    command = f'{local_worker.PARENT}={os.getpid()} exec {program}'
    return environments.SubprocessSDKEnvironment.from_command_string(command)


def _refuse_unknown(flags: Sequence[str]) -> None:
    given = PipelineOptions(list(flags))
    known = given.get_all_options()
    for name in set(given.get_all_options(retain_unknown_options=True)) - set(known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'; did you mean --{near[0]}?' if near else ''
        raise UserError(f'--{name} is a flag neither of rf_jax.prepare nor of Beam{hint}')


def _unwrapped(error: Exception) -> Exception:
    """The UserError or OSError of a worker, which Beam gives as text, or else the error itself."""
    end = r'(.+?)(?: \[while running .*)?$'
    if isinstance(error, UserError):
        return error
    if found := re.search(rf'\b(UserError|Unavailable): {end}', str(error), re.MULTILINE):
        return getattr(errors, found[1])(found[2])
    if found := re.search(rf'\[Errno (\d+)\] {end}', str(error), re.MULTILINE):
        return OSError(int(found[1]), found[2])
    return error


@contextlib.contextmanager
def _worker_deaths_end_the_run() -> Iterator[None]:
    """Beam waits for ever for a process that was killed, as for lack of memory; it only raises in
    the thread that watches the process.
    """

    def hook(arguments) -> None:
        found = re.search(
            r'Worker subprocess exited with return code (-?\d+)', str(arguments.exc_value)
        )
        if found:
            errors.exit_now(
                errors.FAILURE,
                f'error: a worker process ended with code {found[1]} (-9: killed, as for lack of '
                'memory); the same command resumes; with fewer --workers it needs less memory',
            )
        if not isinstance(arguments.exc_value, grpc.RpcError):  # follows, in other threads
            before(arguments)

    before, threading.excepthook = threading.excepthook, hook
    try:
        yield
    finally:
        threading.excepthook = before

"""Command lines that speak to people: one line for a mistake of theirs, a traceback for ours."""

import difflib
import errno
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from absl import app, flags, logging

from rf_jax.runtime import environment, exits, hosts, streams
from rf_jax.runtime.errors import UserError

_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_signals: list[int] = []  # that were not left to `metrics.StopSignal`


def run(main: Callable, required: Sequence[str] = (), several: bool = False) -> None:
    """`absl.app.run(main)`; UserError and unknown config fields end with one line.

    The exit codes are those of runtime/exits.py. `several`: this command may be one of several
    processes (runtime/hosts.py).
    """
    streams.prepare()
    environment.prepare()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell does for its background
            signal.signal(number, _interrupt)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(None)
    for name in required:
        flags.mark_flag_as_required(name)

    def guarded(argv):
        try:
            if several:
                hosts.start()
            result = main(argv)
            hosts.finish()
            return result
        except (Exception, KeyboardInterrupt) as error:
            _end(error)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> Sequence[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if 'config' in flags.FLAGS:
            flags.FLAGS.config.keys()  # a file that is not there raises at the first use only
        return rest
    except (AttributeError, KeyError, TypeError, OSError) as error:
        _fail(explain(argv, error))
    except flags.Error as error:
        in_the_file = 'Error whilst parsing config file' in str(error)  # config_flags' traceback
        _fail(explain(argv, error) if in_the_file else f'{error} (--helpshort lists all flags)')


def _fail(message: str, code: int = exits.MISTAKE) -> NoReturn:
    print(f'error: {message}', file=sys.stderr)
    sys.exit(code)


def _end(error: BaseException) -> NoReturn:
    """Ends this process and all others with the exit code of an error."""
    if _signals:  # libraries turn a KeyboardInterrupt in their callbacks into errors of their own
        error = KeyboardInterrupt(signal.Signals(_signals[0]).name)
    if isinstance(error, KeyboardInterrupt):
        hosts.abandon(error, exits.INTERRUPTED)
        _fail(f'stopped by a signal ({error or "SIGINT"})', exits.INTERRUPTED)
    if isinstance(error, OSError) and error.errno in _DISK_REFUSES:
        error = UserError(f'{error}: free space there, or choose another folder')
    if isinstance(error, UserError):
        hosts.abandon(error, error.code)
        _fail(str(error), error.code)
    hosts.abandon(error, exits.fault())
    traceback.print_exception(error)
    sys.exit(exits.fault())


def _interrupt(number: int, frame: object) -> None:
    """A second signal ends the process even within compiled code."""
    del frame
    _signals.append(number)
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt(signal.Signals(number).name)


def explain(argv: Sequence[str], error: Exception) -> str:
    """What is wrong with `--config...`: no such file, or no such field and the nearest ones."""
    path = flags.FLAGS['config'].default if 'config' in flags.FLAGS else ''
    for argument, after in zip(argv, [*argv[1:], '']):
        if argument.startswith(('--config=', '-config=')):
            path = argument.split('=', 1)[1]
        elif argument in ('--config', '-config'):
            path = after
    path, _, variant = str(path).partition(':')
    if not os.path.exists(path):
        return f'--config={path}: there is no such file (looked from {os.getcwd()})'
    try:
        make = runpy.run_path(path)['get_config']
        fields = list(field_names(make(variant) if variant else make()))
    except Exception as failure:
        return f'--config={path}{":" if variant else ""}{variant}: {failure or error}'
    for argument in argv:
        name = argument.lstrip('-').partition('=')[0].removeprefix('config.')
        if argument.lstrip('-').startswith('config.') and name not in fields:
            leaf = {field.rpartition('.')[2]: field for field in fields}
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.7)
            near += [leaf[x] for x in difflib.get_close_matches(name.rpartition('.')[2], leaf, n=1)]
            hint = f'; did you mean --config.{near[0]} ?' if near else ''
            return f'--config.{name}: {path} has no such field{hint}'
    return f'{type(error).__name__}: {error}'


def field_names(config: Mapping, prefix: str = '') -> Iterator[str]:
    """Dotted names of all fields of a config, groups and leaves."""
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, 'items'):
            yield from field_names(value, f'{prefix}{name}.')

"""Entry point of all commands: user errors print one line, bugs a traceback."""

import difflib
import errno
import math
import os
import re
import runpy
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NoReturn

from absl import app, flags, logging

from rf_jax.runtime import distributed, environment, errors, paths, renamed_fields
from rf_jax.runtime.errors import UserError

# Dashes that word processors and chats substitute for hyphens.
_DASHES = tuple('\u2010\u2011\u2012\u2013\u2014\u2015\u2212')
_CONFIG = ('--config', '-config')
_OUT_OF_MEMORY = (
    'error: a device is out of memory; docs/usage.md#when-something-goes-wrong says which fields '
    'make each part smaller'
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Seconds for libraries to end after an error. After a failed save, a thread of Orbax waits for 300.
_PATIENCE = 30.0
_signals: list[int] = []  # received while no `metrics.StopSignal` was active


class _Path(flags.ArgumentParser):
    """A local path with `~` expanded; rejects an empty path and URLs."""

    def parse(self, argument: str) -> str:
        return str(paths.expanded(argument))

    def flag_type(self) -> str:
        return 'path'


class Finite(flags.FloatParser):
    """Like FloatParser, but rejects nan and inf."""

    def is_outside_bounds(self, val: float) -> bool:
        return not math.isfinite(val) or super().is_outside_bounds(val)


class _AnyPath(_Path):
    """As `_Path`, or the address of a gs:// or s3:// bucket."""

    def parse(self, argument: str) -> str:
        return str(paths.expanded_anywhere(argument))


PATH = _Path()  # flags.DEFINE(cli.PATH, name, ...)
ANY_PATH = _AnyPath()


def run(
    main: Callable,
    required: Sequence[str] = (),
    multiprocess: bool = False,
    config: str = '',
    others: bool = False,
) -> None:
    """Like `absl.app.run(main)`, but UserError and unknown config fields print one line.

    Args:
      main: takes argv; what it returns is the exit code (runtime/errors.py).
      required: flags that must be given.
      multiprocess: the command may run as one of several processes (runtime/distributed.py).
      config: default of --config.
      others: flags that are not defined are given to main, behind the name of the program.
    """
    environment.make_output_robust()
    environment.prepare()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored in a shell's background jobs
            signal.signal(number, _interrupt)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(None)

    def guarded(argv):
        try:
            if multiprocess:
                distributed.start()
            result = main(argv)
            distributed.finish()
            return result
        except (Exception, KeyboardInterrupt) as error:
            try:
                _exit(error)
            except SystemExit as leaving:
                errors.exit_within(_PATIENCE, leaving.code)
                raise

    app.run(guarded, flags_parser=partial(_parse, required=required, config=config, others=others))


def _parse(
    argv: Sequence[str], required: Sequence[str], config: str, others: bool
) -> Sequence[str]:
    flags.FLAGS.set_gnu_getopt(True)  # also parse flags that follow a positional argument
    try:
        argv = _with_config_file(argv, config)
        rest = flags.FLAGS(argv, known_only=others)
        stray = [word for word in rest[1:] if not (others and word.startswith('--'))]
        if stray:
            _fail(_stray(argv, stray[0]))
        for name in required:
            if flags.FLAGS[name].value is None:
                _fail(f'--{name} is missing (--helpshort lists all flags)')
        if 'config' in flags.FLAGS:
            flags.FLAGS.config.keys()  # a missing file raises only on first use
        return rest
    except UserError as error:
        _fail(str(error))
    except (AttributeError, KeyError, TypeError, OSError) as error:
        _fail(explain(argv, error))
    except flags.Error as error:
        # config_flags puts the traceback of the config file into its message.
        from_file = 'Error whilst parsing config file' in str(error)
        _fail(explain(argv, error) if from_file else f'{error} (--helpshort lists all flags)')


def _with_config_file(argv: Sequence[str], default: str) -> list[str]:
    """argv with the path of --config, or its default, resolved by `paths.config_file`.

    A default on the flag itself would be loaded while the command is imported, where errors in the
    file or in its overrides could only print tracebacks.
    """
    resolved, given = list(argv), False
    for i, argument in enumerate(argv[1:], 1):
        name, equals, value = argument.partition('=')
        if equals and name in _CONFIG:
            resolved[i], given = f'{name}={paths.config_file(value)}', True
        elif argv[i - 1] in _CONFIG:
            resolved[i], given = paths.config_file(argument), True
    if default and not given:
        resolved.insert(1, f'--config={paths.config_file(default)}')
    return resolved


def _stray(argv: Sequence[str], word: str) -> str:
    """The error message for a positional argument, which no command takes."""
    if word.startswith(_DASHES):
        return f'{word!r} begins with {word[0]!r}, not with two hyphens: write --' + word.lstrip(
            '-' + ''.join(_DASHES)
        )
    place = argv.index(word) if word in argv else 0  # 0: it came from a --flagfile
    before = argv[place - 1]
    if place and before.startswith('-') and '=' in before:
        flag, _, value = before.partition('=')
        after = argv[place + 1 :]
        words = [value, word]
        for each in after:
            if each.startswith('-'):
                break
            words.append(each)
        quoted = shlex.quote(' '.join(words))
        return f'{word!r} is not a flag; quote a value that has spaces: {flag}={quoted}'
    return f'{word!r} is not a flag; flags are written --name=value'


def _fail(message: str, code: int = errors.USER_ERROR) -> NoReturn:
    print(f'error: {message}', file=sys.stderr)
    sys.exit(code)


def _exit(error: BaseException) -> NoReturn:
    """Exits this process and all others with the exit code of an error."""
    if _signals:  # libraries wrap a KeyboardInterrupt raised in their callbacks
        error = KeyboardInterrupt(signal.Signals(_signals[0]).name)
    if isinstance(error, KeyboardInterrupt):
        distributed.abort(error, errors.INTERRUPTED)
        _fail(f'stopped by a signal ({error or "SIGINT"})', errors.INTERRUPTED)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        error = UserError(f'{error}: free space there, or choose another folder')
    if isinstance(error, UserError):
        # A bucket may fail after hours of progress.
        code = errors.failure_code() if isinstance(error, errors.Unavailable) else error.code
        distributed.abort(error, code)
        _fail(str(error), code)
    distributed.abort(error, errors.failure_code())
    traceback.print_exception(error)
    if 'RESOURCE_EXHAUSTED' in str(error):  # XLA's
        print(_OUT_OF_MEMORY, file=sys.stderr)
    sys.exit(errors.failure_code())


def _interrupt(number: int, frame: object) -> None:
    """Raises KeyboardInterrupt; a second signal kills the process even inside compiled code."""
    del frame
    _signals.append(number)
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt(signal.Signals(number).name)


def explain(argv: Sequence[str], error: Exception) -> str:
    """The error message for a bad `--config...`: no such file, or no such field and the nearest."""
    path = ''
    for argument, after in zip(argv, [*argv[1:], '']):
        if argument.partition('=')[0] in _CONFIG:
            path = argument.partition('=')[2] or after
    path, _, variant = str(path).partition(':')
    if not os.path.exists(path):
        return f'--config={path}: no such file (working directory {os.getcwd()})'
    try:
        get_config = runpy.run_path(path)['get_config']
        fields = list(field_names(get_config(variant) if variant else get_config()))
    except Exception as failure:
        return f'--config={path}{":" if variant else ""}{variant}: {_no_field(failure or error)}'
    for argument in argv:
        name = argument.lstrip('-').partition('=')[0].removeprefix('config.')
        if argument.lstrip('-').startswith('config.') and name not in fields:
            if new := renamed_fields.new_name(name):
                return f'--config.{name} is now --config.{new}'
            leaf = {field.rpartition('.')[2]: field for field in fields}
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.7)
            near += [leaf[x] for x in difflib.get_close_matches(name.rpartition('.')[2], leaf, n=1)]
            hint = f'; did you mean --config.{near[0]} ?' if near else ''
            return f'--config.{name}: {path} has no such field{hint}'
    return f'{type(error).__name__}: {error}'


def _no_field(failure: Exception) -> str:
    """The error of a config file; for an unknown field, its name and the new name if renamed."""
    text = str(failure)
    missing = re.search(
        r'Key "(\w+)" does not exist|^["\'\\]+(\w+)["\'\\]+(?:$|nDid you mean)', text
    )
    if not missing:
        return text
    name = missing[1] or missing[2]
    new, near = renamed_fields.new_name(name), re.search(r'Did you mean "(\w+)"', text)
    hint = f': it is now {new}' if new else f'; did you mean {near[1]!r}?' if near else ''
    return f'there is no field {name!r}{hint}'


def field_names(config: Mapping, prefix: str = '') -> Iterator[str]:
    """Dotted names of all fields of a config, groups and leaves."""
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, 'items'):
            yield from field_names(value, f'{prefix}{name}.')

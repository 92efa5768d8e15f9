"""Command lines that speak to people: one line for a mistake of theirs, a traceback for ours."""

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

from rf_jax.runtime import distributed, environment, exits, paths, renamed_fields, streams
from rf_jax.runtime.errors import UserError

# What word processors and chats make of a hyphen.
_DASHES = tuple('\u2010\u2011\u2012\u2013\u2014\u2015\u2212')
_CONFIG = ('--config', '-config')
_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_signals: list[int] = []  # that were not left to `metrics.StopSignal`


class _Path(flags.ArgumentParser):
    """A local path, with `~` expanded; an empty one and URLs are refused."""

    def parse(self, argument: str) -> str:
        return str(paths.expanded(argument))

    def flag_type(self) -> str:
        return 'path'


class Finite(flags.FloatParser):
    """As FloatParser, but neither nan nor inf."""

    def is_outside_bounds(self, val: float) -> bool:
        return not math.isfinite(val) or super().is_outside_bounds(val)


PATH = _Path()  # flags.DEFINE(command.PATH, name, ...)


def run(
    main: Callable, required: Sequence[str] = (), several: bool = False, config: str = ''
) -> None:
    """`absl.app.run(main)`; UserError and unknown config fields end with one line.

    The exit codes are those of runtime/exits.py. `required`: flags that must be given; `config`:
    the file of --config if it is not given. `several`: this command may be one of several processes
    (runtime/distributed.py).
    """
    streams.prepare()
    environment.prepare()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell does for its background
            signal.signal(number, _interrupt)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(None)

    def guarded(argv):
        try:
            if several:
                distributed.start()
            result = main(argv)
            distributed.finish()
            return result
        except (Exception, KeyboardInterrupt) as error:
            _end(error)

    app.run(guarded, flags_parser=partial(_parse, required=required, config=config))


def _parse(argv: Sequence[str], required: Sequence[str], config: str) -> Sequence[str]:
    flags.FLAGS.set_gnu_getopt(True)  # flags after a stray word are flags, not further words
    try:
        argv = _with_config_file(argv, config)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            _fail(_stray(argv, rest[1]))
        for name in required:
            if flags.FLAGS[name].value is None:
                _fail(f'--{name} is missing (--helpshort lists all flags)')
        if 'config' in flags.FLAGS:
            flags.FLAGS.config.keys()  # a file that is not there raises at the first use only
        return rest
    except UserError as error:
        _fail(str(error))
    except (AttributeError, KeyError, TypeError, OSError) as error:
        _fail(explain(argv, error))
    except flags.Error as error:
        in_the_file = 'Error whilst parsing config file' in str(error)  # config_flags' traceback
        _fail(explain(argv, error) if in_the_file else f'{error} (--helpshort lists all flags)')


def _with_config_file(argv: Sequence[str], default: str) -> list[str]:
    """The command line with the file of --config, or the default, as `paths.config_file` finds it.

    A default that the flag itself had would be read while the command is imported, where its errors
    and those of its overrides can only be tracebacks.
    """
    found, given = list(argv), False
    for i, argument in enumerate(argv[1:], 1):
        name, equals, value = argument.partition('=')
        if equals and name in _CONFIG:
            found[i], given = f'{name}={paths.config_file(value)}', True
        elif argv[i - 1] in _CONFIG:
            found[i], given = paths.config_file(argument), True
    if default and not given:
        found.insert(1, f'--config={paths.config_file(default)}')
    return found


def _stray(argv: Sequence[str], word: str) -> str:
    """What to say of a word of the command line that is no flag and no value of one."""
    if word.startswith(_DASHES):
        return f'{word!r} begins with {word[0]!r}, not with two hyphens: write --' + word.lstrip(
            '-' + ''.join(_DASHES)
        )
    place = argv.index(word) if word in argv else 0  # 0: it comes from a --flagfile
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
        return f'{word!r} belongs to no flag; a value with spaces needs quotes: {flag}={quoted}'
    return f'{word!r} belongs to no flag; flags are written --name=value'


def _fail(message: str, code: int = exits.MISTAKE) -> NoReturn:
    print(f'error: {message}', file=sys.stderr)
    sys.exit(code)


def _end(error: BaseException) -> NoReturn:
    """Ends this process and all others with the exit code of an error."""
    if _signals:  # libraries turn a KeyboardInterrupt in their callbacks into errors of their own
        error = KeyboardInterrupt(signal.Signals(_signals[0]).name)
    if isinstance(error, KeyboardInterrupt):
        distributed.abandon(error, exits.INTERRUPTED)
        _fail(f'stopped by a signal ({error or "SIGINT"})', exits.INTERRUPTED)
    if isinstance(error, OSError) and error.errno in _DISK_REFUSES:
        error = UserError(f'{error}: free space there, or choose another folder')
    if isinstance(error, UserError):
        distributed.abandon(error, error.code)
        _fail(str(error), error.code)
    distributed.abandon(error, exits.fault())
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
    path = ''
    for argument, after in zip(argv, [*argv[1:], '']):
        if argument.partition('=')[0] in _CONFIG:
            path = argument.partition('=')[2] or after
    path, _, variant = str(path).partition(':')
    if not os.path.exists(path):
        return f'--config={path}: there is no such file (looked from {os.getcwd()})'
    try:
        make = runpy.run_path(path)['get_config']
        fields = list(field_names(make(variant) if variant else make()))
    except Exception as failure:
        return f'--config={path}{":" if variant else ""}{variant}: {_no_field(failure or error)}'
    for argument in argv:
        name = argument.lstrip('-').partition('=')[0].removeprefix('config.')
        if argument.lstrip('-').startswith('config.') and name not in fields:
            if renamed_fields.new_name(name):
                return f'--config.{name} is now --config.{renamed_fields.new_name(name)}'
            leaf = {field.rpartition('.')[2]: field for field in fields}
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.7)
            near += [leaf[x] for x in difflib.get_close_matches(name.rpartition('.')[2], leaf, n=1)]
            hint = f'; did you mean --config.{near[0]} ?' if near else ''
            return f'--config.{name}: {path} has no such field{hint}'
    return f'{type(error).__name__}: {error}'


def _no_field(failure: Exception) -> str:
    """What a config file got wrong; of a field that is not there, its name and the new one."""
    missing = re.search(r'Key "(\w+)" does not exist|^["\']+(\w+)["\']+$', str(failure))
    if not missing:
        return str(failure)
    name = missing[1] or missing[2]
    new = renamed_fields.new_name(name)
    return f'there is no field {name!r}' + (f': it is now {new}' if new else '')


def field_names(config: Mapping, prefix: str = '') -> Iterator[str]:
    """Dotted names of all fields of a config, groups and leaves."""
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, 'items'):
            yield from field_names(value, f'{prefix}{name}.')

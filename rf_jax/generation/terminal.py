"""A conversation in a terminal: what is typed or pasted, and an answer that Ctrl-C stops."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np

from rf_jax.data import image_ops, image_urls
from rf_jax.generation.chat import Delta
from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError


def lines() -> Iterator[str]:
    """What the user types, up to an empty line. Text that is pasted into a terminal is one line,
    however many it has.
    """
    prompt = '> ' if sys.stdin.isatty() else ''
    if hasattr(sys.stdin, 'reconfigure'):
        sys.stdin.reconfigure(errors='replace')
    with contextlib.suppress(ImportError):  # not in every build of Python
        import readline

        readline.parse_and_bind('set enable-bracketed-paste on')
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line in ('', '/quit', '/exit'):
            return
        yield line


def file_of(text: str) -> str:
    r"""The file that a text names as terminals paste it: in quotes, with `\ ` or `~`, as a URL.
    Raises UserError.
    """
    text = text.strip()
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that does not end
        words = []
    if len(words) == 1 and not os.path.exists(text):
        text = words[0]
    try:
        return str(paths.expanded(image_urls.file_of(text)))
    except ValueError as error:
        raise UserError(f'/image {text:.80}: {error}') from None


def read(given: str, file: str, max_pixels: int) -> np.ndarray:
    """uint8 [h, w, 3]. Raises UserError that begins with what was `given`."""
    try:
        return image_ops.read_rgb(file, max_pixels)
    except image_ops.BadImage as error:
        raise UserError(f'{given}{file}: {error}') from None


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """A list to which the first Ctrl-C at a terminal is added; the second ends the command."""
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        del frame
        stopped.append(number)
        signal.signal(number, before)

    before = signal.getsignal(signal.SIGINT)
    if sys.stdin.isatty():
        signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def show(
    parts: Iterator[Delta], save: Callable[[np.ndarray], paths.AnyPath], stoppable: bool
) -> None:
    """Prints an answer as it comes; images are saved, and their paths printed."""
    with contextlib.closing(parts), _stoppable() if stoppable else contextlib.nullcontext() as stop:
        for part in parts:
            text = part if isinstance(part, str) else f'[{save(part.image)}] '
            print(text, end='', flush=True)
            if stop:
                print(' [stopped]', end='')
                break
    print()

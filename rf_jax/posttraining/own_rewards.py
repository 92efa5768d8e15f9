"""Rewards of the user: functions in files, as `--reward=my_rewards.py:brightness` names them."""

import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rf_jax.posttraining.rewards import Reward
from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError, require


def load_all(texts: Sequence[str]) -> dict[str, Reward]:
    """{name of the function: function}; a file is executed once, however many functions it has.
    Raises UserError, also if two functions have the same name.
    """
    found: dict[str, Reward] = {}
    modules: dict[Path, ModuleType] = {}
    for text in texts:
        path, name = _parsed(text)
        require(name not in found, f'--reward={text}: there are two functions {name}; rename one')
        if path not in modules:
            modules[path] = _executed(text, path)
        found[name] = _function(text, modules[path], name)
    return found


def _parsed(text: str) -> tuple[Path, str]:
    """(absolute path of the file, name of the function)."""
    file, _, name = text.rpartition(':')
    require(
        file.endswith('.py') and name.isidentifier(),
        f'--reward={text}: expected a file and a function in it, as in my_rewards.py:brightness',
    )
    path = paths.local(file, '--reward').absolute()
    require(path.is_file(), f'--reward={text}: there is no file {path}')
    return path, name


def _executed(text: str, path: Path) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import what lies beside it, as a script may
    spec = importlib.util.spec_from_file_location(f'reward_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f'--reward={text}: {path} cannot be imported: {error!r}') from error
    return module


def _function(text: str, module: ModuleType, name: str) -> Reward:
    found = getattr(module, name, None)
    functions = [key for key, value in vars(module).items() if callable(value) and key[0] != '_']
    require(
        callable(found),
        f'--reward={text}: {module.__file__} has no function {name!r}, but '
        f'{", ".join(functions) or "none"}',
    )
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of some built-in functions nobody knows it
        return found
    try:
        signature.bind('prompt', 'source', 'sample')
    except TypeError as error:
        raise UserError(
            f'--reward={text}: {name}{signature} is called as {name}(prompt, source, sample): '
            f'{error}'
        ) from None
    return found

"""Folders are floors: imports go down only, data knows no jax, modules stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rf_jax

ROOT = Path(rf_jax.__file__).parent
# From the top; entry points are the modules of rf_jax itself.
FLOORS = ('', 'study', 'planning', 'serving', 'posttraining', 'preparation', 'evaluation',
          'generation', 'training', 'interop', 'models', 'data', 'scenes', 'runtime')  # fmt: skip
# Beside each other: neither imports the other, and nothing but entry points imports them.
WINGS = ('study', 'planning', 'serving', 'posttraining', 'preparation')
MODULES = sorted(path for path in ROOT.rglob('*.py') if path != ROOT / '__init__.py')


def imports(path):
    """Every module or name that a file imports anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def floor(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ''


def own_floor(name):
    """Floor of a dotted name under rf_jax; None for a name of rf_jax/__init__ itself."""
    parts = name.split('.')[1:]
    if not parts:
        return None
    if parts[0] in FLOORS:
        return parts[0]
    return '' if (ROOT / f'{parts[0]}.py').exists() else None


def test_modules_are_found():
    assert {floor(path) for path in MODULES} == set(FLOORS)
    assert 'rf_jax.training.flow' in imports(ROOT / 'training' / 'losses.py')


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    assert floor(path) in FLOORS, f'{path.parent.name} is no floor: add it to the design'
    here = FLOORS.index(floor(path))
    for name in imports(path):
        assert name.split('.')[0] not in ('configs', 'tests'), f'{path}: imports {name}'
        if name.split('.')[0] == 'rf_jax':
            there = own_floor(name)
            assert there is None or FLOORS.index(there) >= here, f'{path}: imports {name} above it'
            if there in WINGS:
                assert floor(path) in ('', there), f'{path}: only entry points import {there}'


@pytest.mark.parametrize('folder', ['preparation', 'data', 'scenes'])
def test_data_and_scenes_have_no_jax(folder):
    for path in (ROOT / folder).rglob('*.py'):
        roots = {name.split('.')[0] for name in imports(path)}
        assert not roots & {'jax', 'jaxlib', 'flax', 'optax', 'orbax'}, path


def test_scenes_are_imported_without_jax():
    modules = ', '.join(path.stem for path in (ROOT / 'scenes').glob('[!_]*.py'))
    script = f'import sys; sys.modules["jax"] = None; from rf_jax.scenes import {modules}'
    subprocess.run([sys.executable, '-c', script], check=True)


@pytest.mark.parametrize('command', ['train', 'evaluate', 'sample', 'serve', 'describe'])
def test_commands_start_without_libraries_that_import_for_seconds(command):
    slow = ('tensorboardX', 'torch', 'transformers', 'tensorflow', 'matplotlib')
    script = f'import sys, rf_jax.{command}; assert not sys.modules.keys() & {{*{slow}}}'
    subprocess.run([sys.executable, '-c', script], check=True)


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 300


@pytest.mark.parametrize('name', ['flow', 'losses'])
def test_the_algorithm_knows_no_network(name):
    """Losses know terms, and the kinds of representation, which bring their own."""
    known = ('rf_jax.models.terms', 'rf_jax.models.representation') if name == 'losses' else '-'
    found = imports(ROOT / 'training' / f'{name}.py')
    found = [n for n in found if n.startswith(('rf_jax.models', 'flax'))]
    assert not [n for n in found if not n.startswith(known)]


def test_the_glossary_imports_nothing():
    assert not imports(ROOT / '__init__.py')

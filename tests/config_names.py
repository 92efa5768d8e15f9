"""Every config of a run: a module below configs, or a stage of one that has several."""

import importlib
from pathlib import Path

import configs

ROOT = Path(configs.__file__).parent
STAGED = ('paper', 'stages', 'posttraining.unified_grpo')
MODULES = sorted(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in ROOT.rglob('*.py')
    # Lists of runs, and one that is of another run (test_posttraining_configs.py).
    if path.stem not in ('__init__', 'study', 'ladder', 'own')
)
NAMES = [
    f'{name}:{stage}' if stage else name
    for name in MODULES
    for stage in (importlib.import_module(f'configs.{name}').STAGES if name in STAGED else [''])
]


def get_config(name: str):
    """The config of a name of NAMES."""
    module, _, stage = name.partition(':')
    make = importlib.import_module(f'configs.{module}').get_config
    return make(stage) if stage else make()

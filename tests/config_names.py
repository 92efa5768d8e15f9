"""Every config of a run, as a module below configs."""

from pathlib import Path

import configs

ROOT = Path(configs.__file__).parent
NAMES = sorted(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in ROOT.rglob('*.py')
    if path.stem not in ('__init__', 'study', 'ladder')  # these are no runs, but lists of them
)

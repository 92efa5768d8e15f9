"""Several processes of one command on this machine, which share virtual devices."""

import importlib
import os
import re
import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS.parent / 'launch'))
local = importlib.import_module('local')  # a script outside the package


def start(count, command, folder, devices):
    """`local.Processes` of a command with so many devices in total, logged to the folder."""
    flags, each = os.environ['XLA_FLAGS'], rf'\1={devices // count}'
    environment = {
        **os.environ,
        'XLA_FLAGS': re.sub(r'(device_count)=\d+', each, flags),
        'PYTHONPATH': os.pathsep.join([str(TESTS), os.environ.get('PYTHONPATH', '')]),
    }
    return local.Processes(count, command, folder, environment, False, TESTS.parent)

"""Kills one of several training processes at random moments and checks that nothing is lost.

python launch/kill_trial.py [--processes=4] [--kills=10] [--devices=1] [--seed=0] [--steps=300]
    [--folder=...]

For each kill: start all processes, send SIGKILL to one at a random moment (alternately during
startup and during training), wait until all have exited, start again. After the last kill the run
continues to its end, and its state is compared with that of an undisturbed run. Prints a table; the
exit code is 0 if all processes exited within 60 s, every restart resumed from the newest finished
checkpoint, and the states are bit-identical. About 10 minutes on 2 cores.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import local

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60.0  # seconds within which all processes must exit
EVERY = 5  # steps between checkpoints
TRAINING = 15.0  # kills during training happen within this many seconds of it


def command(workdir: Path, steps: int, cache: Path) -> list[str]:
    """The command that trains the debug config with frequent checkpoints."""
    flags = {
        'config': 'configs/debug.py',
        'workdir': workdir,
        'config.steps': steps,
        'config.checkpoint.every': EVERY,
        'config.log.every': 1,
        'config.evaluation.samples': 0,
        'config.compilation_cache': cache,
    }
    return [sys.executable, '-m', 'rf_jax.train', *(f'--{k}={v}' for k, v in flags.items())]


def saved(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    folders = (workdir / 'checkpoints').glob('*')
    return sorted(int(path.name) for path in folders if path.name.isdecimal())


class Trial:
    """One run and its attempts."""

    def __init__(self, folder: Path, name: str, options, cache: Path):
        self.workdir, self.logs, self.options = folder / name, folder / f'{name}_logs', options
        self.command = command(self.workdir, options.steps, cache)
        self.attempts = 0

    def start(self) -> local.Processes:
        self.attempts += 1
        devices = f'--xla_force_host_platform_device_count={self.options.devices}'
        environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': devices}
        environment['PYTHONPATH'] = str(ROOT)
        return local.Processes(
            self.options.processes, self.command, self.logs / str(self.attempts),
            environment, show=False, cwd=ROOT,
        )  # fmt: skip

    def log(self, index: int = 0) -> str:
        """The log of one process of the last attempt."""
        path = self.logs / str(self.attempts) / f'{index}.log'
        return path.read_text(errors='replace') if path.exists() else ''

    def resumed(self) -> int:
        """The step that the last attempt resumed from; 0: it started from scratch; -1: unknown."""
        match = re.search(r'Resumed .* at step (\d+) of', self.log())
        return int(match[1]) if match else 0 if 'from new weights' in self.log() else -1

    def kill(self, rng: random.Random, until: float, training: bool) -> dict:
        """One attempt, killed within `until` seconds or, if `training`, after the first step."""
        before = saved(self.workdir)
        processes = self.start()
        victim = rng.randrange(self.options.processes)
        moment, began = rng.uniform(0.5, TRAINING if training else until), time.monotonic()
        since = None if training else began
        while since is None or time.monotonic() - since < moment:
            if processes.processes[victim].poll() is not None:
                break
            if since is None and '\nstep ' in self.log():
                since = time.monotonic()
            time.sleep(0.01)
        moment = time.monotonic() - began
        if any(p.poll() is not None for p in processes.processes):
            raise SystemExit(f'finished before it was killed, raise --steps: {self.log()[-2000:]}')
        killed = time.monotonic()
        processes.processes[victim].send_signal(signal.SIGKILL)
        codes = processes.wait()
        row = {'victim': victim, 'after': moment, 'exited in': time.monotonic() - killed}
        row['codes'] = codes  # -9 for another process: killed by the launcher
        row['newest before'] = max(before, default=0)
        row['resumed'] = self.resumed()
        row['newest after'] = max(saved(self.workdir), default=0)
        others = [i for i in range(self.options.processes) if i != victim]
        row['named'] = sum('error: process ' in self.log(i) for i in others)
        return row


def check(row: dict, number: int) -> list[str]:
    """What went wrong in one kill, as messages; empty if nothing did."""
    wrong = []
    if row['exited in'] > LIMIT:
        wrong.append(f'kill {number}: took {row["exited in"]:.0f} s to exit')
    if row['resumed'] not in (-1, row['newest before']):
        wrong.append(f'kill {number}: resumed {row["resumed"]}, not {row["newest before"]}')
    if row['newest after'] < row['newest before']:
        wrong.append(f'kill {number}: a finished checkpoint is missing')
    if 0 in row['codes']:
        wrong.append(f'kill {number}: a process exited with code 0')
    return wrong


def different(a: Path, b: Path) -> list[str]:
    """Paths of arrays that differ between the newest checkpoints of two workdirs."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    sys.path.insert(0, str(ROOT))
    import jax

    from rf_jax.runtime import checkpoint

    (step, left), (other, right) = (
        checkpoint.restore_numpy(workdir / 'checkpoints') for workdir in (a, b)
    )
    differ = [] if step == other else [f'steps {step} and {other}']
    left, right = (jax.tree_util.tree_leaves_with_path(tree) for tree in (left, right))
    for (path, x), (_, y) in zip(left, right, strict=True):
        if x.tobytes() != y.tobytes():
            differ.append(jax.tree_util.keystr(path))
    return differ


def losses(workdir: Path) -> list:
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [(line['step'], line['loss']) for line in lines if 'loss' in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    for name, default in {
        'processes': 4,
        'kills': 10,
        'devices': 1,
        'seed': 0,
        'steps': 300,
    }.items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--folder', type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix='rf_jax_kill_'))
    rng, cache = random.Random(options.seed), folder / 'programs'
    print(f'in {folder}', flush=True)

    undisturbed = Trial(folder, 'undisturbed', options, cache)
    began = time.time()
    if any(undisturbed.start().wait()):
        raise SystemExit(undisturbed.log()[-3000:])
    lines = (undisturbed.workdir / 'metrics.jsonl').read_text().splitlines()
    until = json.loads(lines[0])['time'] - began
    print(f'first step after {until:.1f} s', flush=True)

    killed, wrong = Trial(folder, 'killed', options, cache), []
    print(f'{"kill":>4} {"process":>7} {"after s":>8} {"all exited in s":>15} {"named lost":>10} '
          f'{"resumed":>7} {"newest before":>13} {"newest after":>12}  exit codes')  # fmt: skip
    for number in range(1, options.kills + 1):
        row = killed.kill(rng, until, training=number % 2 == 0)
        wrong += check(row, number)
        resumed = row['resumed'] if row['resumed'] >= 0 else '-'
        print(f'{number:4} {row["victim"]:7} {row["after"]:8.1f} {row["exited in"]:15.1f} '
              f'{row["named"]:10} {resumed:>7} {row["newest before"]:13} {row["newest after"]:12}  '
              f'{row["codes"]}', flush=True)  # fmt: skip
    newest = max(saved(killed.workdir), default=0)
    if any(killed.start().wait()):
        raise SystemExit(killed.log()[-3000:])
    if killed.resumed() != newest:
        wrong.append(f'the last attempt resumed {killed.resumed()}, not {newest}')
    unequal = different(killed.workdir, undisturbed.workdir)
    wrong += [f'not equal: {", ".join(unequal[:5])} ({len(unequal)})'] if unequal else []
    wrong += ['the losses differ'] if losses(killed.workdir) != losses(undisturbed.workdir) else []
    print('\n'.join(wrong) or 'final state and all losses equal those of the undisturbed run')
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())

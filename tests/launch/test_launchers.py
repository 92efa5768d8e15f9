"""Launchers restart a run exactly when its exit codes say so: the real scripts in a real shell,
with the cluster's commands replaced by ones that record their calls and give codes.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from rf_jax.runtime import errors

pytestmark = pytest.mark.slow

LAUNCH = Path(__file__).parents[2] / 'launch'
KILLED = 128 + signal.SIGKILL

# Runs `--command` for each worker and exits as gcloud does, with the first nonzero code.
GCLOUD = r"""
echo "gcloud $*" >>"$ROOT/calls"
case "$*" in
  *describe*)
    if [ -e "$ROOT/describe" ]; then cat "$ROOT/describe" >&2; rm "$ROOT/describe"; exit 1; fi
    echo ACTIVE ;;
  *rf_jax.train*)
    read -r codes <"$ROOT/codes"; sed -i 1d "$ROOT/codes"
    command=${*: -1}; command=${command#--command=}
    first=0
    for CODE in $codes; do
      export CODE
      cd "$ROOT/worker" || exit 9
      if [ "$CODE" = lost ]; then  # the connection, not what runs there
        export CODE=0 LASTS=1
        bash -c "$command" >/dev/null 2>&1 &
        until [ -e "$ROOT/trains" ]; do :; done
        exit 255
      fi
      bash -c "$command"; status=$?
      [ "$first" = 0 ] && first=$status
    done
    exit "$first" ;;
  *rf_jax.tar.gz*-C*)
    command=${*: -1}; cd "$ROOT/worker" && HOME=$PWD bash -c "${command#--command=}" || exit ;;
esac
"""
# What is on a TPU's machine: Python 3.10, for which pip refuses JAX; what the network gives.
OLD_PYTHON = 'echo "requires a different Python" >&2; exit 1'
CURL = r"""
echo 'mkdir -p ~/.local/bin; cp "$ROOT/bin/uv" ~/.local/bin/'
"""
# As the real one, fails while another trains in the workdir; LASTS: seconds that it takes.
PYTHON = r"""
echo "python $*" >>"$ROOT/calls"
[ -e "$ROOT/trains" ] && exit 1
if [ -n "${LASTS:-}" ]; then
  touch "$ROOT/trains"; /bin/sleep "$LASTS"; rm "$ROOT/trains"
fi
exit "$CODE"
"""
# As the real one: SIGTERM to srun kills the tasks, which get signals from Slurm (here as USR1).
SRUN = r"""
echo "srun $*" >>"$ROOT/calls"
echo "cpus $SRUN_CPUS_PER_TASK" >>"$ROOT/calls"
read -r code <"$ROOT/codes"; sed -i 1d "$ROOT/codes"
if [ "$code" = wait ]; then
  /bin/sleep 1000 & trap 'kill $!; exit 137' TERM; trap 'kill $!; exit 75' USR1
  echo $$ >"$ROOT/step"; echo started; wait
fi
exit "$code"
"""
SCANCEL = r"""
echo "scancel $*" >>"$ROOT/calls"
[ "$*" = '--signal=TERM 7' ] && kill -USR1 "$(cat "$ROOT/step")"
"""


@pytest.fixture
def cluster(tmp_path):
    """(folder, environment with fake cluster commands)."""
    folder = tmp_path / 'bin'
    (tmp_path / 'worker' / 'rf_jax').mkdir(parents=True)
    (tmp_path / 'worker' / 'env' / 'bin').mkdir(parents=True)
    recorded = 'echo "${0##*/} $*" >>"$ROOT/calls"'
    scripts = {
        'bin/gcloud': GCLOUD,
        'bin/srun': SRUN,
        'bin/scancel': SCANCEL,
        'bin/scontrol': recorded,
        'bin/squeue': 'echo asked >>"$ROOT/calls"; echo "$STATE"',
        'bin/git': ':',
        'bin/tar': ':',
        'bin/python3': OLD_PYTHON,
        'bin/curl': CURL,
        'bin/uv': recorded,
        'bin/sleep': ':',
        'worker/env/bin/python': PYTHON,
    }
    for name, script in scripts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{script}\n')
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        'PATH': f'{folder}:{os.environ["PATH"]}',
        'ROOT': str(tmp_path),
        'SLURM_JOB_ID': '7',
        'SLURM_CPUS_PER_TASK': '14',
        'STATE': 'RUNNING',
    }
    return tmp_path, environment


def started(folder, name):
    path = folder / 'calls'
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(name + ' ')]


@pytest.mark.parametrize(
    ('codes', 'attempts', 'expected'),
    [
        (['0 0'], 1, 0),
        (['64 64'], 1, 64),
        (['1 64'], 1, 64),  # gcloud returns 1, the code of the first worker
        (['75 75', '0 0'], 2, 0),
        (['1 76', '75 1', '76 76', '75 75', '0 0'], 5, 0),
        (['1 1', '1 1', '1 1', '0 0'], 3, 1),
        ([f'{KILLED} 1', '1 1', '76 76', '1 1', '1 1', '0 0'], 6, 0),
        (['0 1', '0 0'], 2, 0),
    ],
)
def test_tpu_sh_restarts_according_to_the_exit_codes_of_all_workers(
    cluster, codes, attempts, expected
):
    folder, environment = cluster
    (folder / 'codes').write_text(''.join(f'{line}\n' for line in codes))
    done = subprocess.run(
        [LAUNCH / 'tpu.sh', 'me', 'v5litepod-64', 'there', '--config=c', '--workdir=/runs/it is'],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == expected, done.stderr
    workers = len(codes[0].split())
    assert len(started(folder, 'python')) == attempts * workers
    assert set(started(folder, 'python')) == {
        'python -m rf_jax.train --config=c --workdir=/runs/it is'
    }


def tpu(cluster):
    folder, environment = cluster
    return subprocess.run(
        [LAUNCH / 'tpu.sh', 'me', 'v5litepod-64', 'there', '--config=c', '--workdir=/runs/it'],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_tpu_sh_installs_on_machines_with_an_old_python(cluster):
    (cluster[0] / 'codes').write_text('1 1\n0 0\n')
    done = tpu(cluster)
    assert done.returncode == 0, done.stderr
    venv, pip = started(cluster[0], 'uv')[-2:]
    assert '--python >=3.11 env' in venv and 'pip install' in pip


def test_tpu_sh_waits_for_what_still_runs_after_a_lost_connection(cluster):
    """Else its next attempts would all end at the lock of the workdir."""
    (cluster[0] / 'codes').write_text('lost\n0 0\n')
    done = tpu(cluster)
    assert done.returncode == 0, done.stderr
    assert 'waiting for the earlier attempt' in done.stdout
    assert len(started(cluster[0], 'python')) == 3


@pytest.mark.parametrize(('asked', 'spot'), [('1', 1), ('0', 0)])
def test_tpu_sh_asks_for_spot_capacity_or_not(cluster, asked, spot):
    folder, environment = cluster
    (folder / 'describe').write_text('NOT_FOUND\n')
    (folder / 'codes').write_text('0 0\n')
    assert tpu((folder, environment | {'SPOT': asked})).returncode == 0
    (create,) = [call for call in started(folder, 'gcloud') if ' create ' in call]
    assert create.split().count('--spot') == spot


@pytest.mark.parametrize('name', ['tpu.sh', 'gke.sh'])
def test_scripts_for_a_laptop_run_in_the_bash_of_macos(name):
    """Version 3.2: these are what it rejects of what is common today."""
    script = (LAUNCH / name).read_text(encoding='utf-8')
    assert not re.search(r'\[@\]\}', script)  # an empty array is unset to `set -u`
    assert not re.search(r'[@+?!*]\((?!\))\w+\|', script)  # patterns of extglob
    assert not re.search(r'\$\(\s*cat <<', script)  # quotes in it are taken for its own
    assert not re.search(r'\b(mapfile|readarray|declare -[An]|local -n)\b|\$\{\w+(\^|,)', script)


@pytest.mark.parametrize(
    ('error', 'creates'), [('UNAVAILABLE: try again', 0), ("NOT_FOUND: Resource 'me'", 1)]
)
def test_tpu_sh_creates_a_resource_only_if_there_is_none(cluster, error, creates):
    (cluster[0] / 'describe').write_text(f'ERROR: (gcloud...describe) {error}\n')
    (cluster[0] / 'codes').write_text('0 0\n')
    assert tpu(cluster).returncode == 0
    calls = started(cluster[0], 'gcloud')
    assert len([call for call in calls if ' queued-resources create ' in call]) == creates


def test_tpu_sh_runs_nothing_if_the_files_cannot_be_packed(cluster):
    """Else the code of an earlier launch would be trained."""
    (cluster[0] / 'bin' / 'git').write_text('#!/usr/bin/env bash\n[ "$1" != archive ]\n')
    assert tpu(cluster).returncode == 1
    assert not started(cluster[0], 'python')
    assert not [call for call in started(cluster[0], 'gcloud') if ' scp ' in call]


@pytest.mark.parametrize(
    ('codes', 'attempts', 'queued', 'expected'),
    [
        ([0], 1, 0, 0),
        ([64], 1, 0, 64),
        ([75], 1, 1, 75),
        ([76, 76, 76, 76, 0], 5, 0, 0),
        ([1, KILLED, 1, 0], 3, 0, 1),
        ([1, 1, 76, 1, 1, 0], 6, 0, 0),
    ],
)
def test_slurm_sh_restarts_according_to_the_exit_code(cluster, codes, attempts, queued, expected):
    folder, environment = cluster
    (folder / 'codes').write_text(''.join(f'{code}\n' for code in codes))
    done = subprocess.run(
        [LAUNCH / 'slurm.sh', '--config=c'], env=environment, cwd=folder, timeout=60
    )
    assert done.returncode == expected
    assert len(started(folder, 'srun')) == attempts
    assert set(started(folder, 'cpus')) == {'cpus 14'}
    assert started(folder, 'scontrol') == ['scontrol requeue 7'] * queued


@pytest.mark.parametrize(('state', 'queued'), [('RUNNING', 1), ('COMPLETING', 0)])
def test_slurm_sh_requeues_at_its_time_limit_but_not_when_cancelled(cluster, state, queued):
    """At the limit only the shell gets a signal, which must reach the tasks, once, not srun."""
    folder, environment = cluster
    (folder / 'codes').write_text('wait\n')
    job = subprocess.Popen(
        [LAUNCH / 'slurm.sh', '--config=c'],
        env=environment | {'STATE': state}, cwd=folder, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert job.stdout.readline() == 'started\n'
    job.send_signal(signal.SIGTERM)
    if state == 'COMPLETING':  # Slurm has signalled the tasks too
        while 'asked\n' not in (folder / 'calls').read_text():
            time.sleep(0.01)
        os.kill(int((folder / 'step').read_text()), signal.SIGUSR1)
    job.communicate(timeout=60)
    assert job.returncode == errors.INTERRUPTED
    assert len(started(folder, 'scancel')) == queued
    assert started(folder, 'scontrol') == ['scontrol requeue 7'] * queued


def action(jobset, code):
    """What JobSet does when a container exits with this code, by its documented order of rules."""
    job = jobset['spec']['replicatedJobs'][0]['template']['spec']
    assert job['backoffLimit'] == 0
    container = job['template']['spec']['containers'][0]['name']
    reason, message = 'BackoffLimitExceeded', 'Job has reached the specified backoff limit'
    for index, rule in enumerate(job['podFailurePolicy']['rules']):
        wanted = rule.get('onExitCodes')
        if wanted and wanted['operator'] == 'In' and code in wanted['values']:
            assert rule['action'] == 'FailJob' and wanted['containerName'] == container
            reason = 'PodFailurePolicy'
            message = (
                f'Container {container} for pod default/x failed with exit code {code} '
                f'matching FailJob rule at index {index}'
            )
            break
    for rule in jobset['spec']['failurePolicy']['rules']:
        patterns = rule['onJobFailureMessagePatterns']
        if reason in rule['onJobFailureReasons'] and any(re.search(p, message) for p in patterns):
            return rule['action']
    return 'RestartJobSet'


def test_gke_sh_restarts_according_to_the_exit_code():
    done = subprocess.run(
        [LAUNCH / 'gke.sh', 'mine', '--config=c', '--workdir=/runs/x'],
        env=os.environ
        | {'IMAGE': 'i', 'CLAIM': 'runs', 'HOSTS': '4', 'TOPOLOGY': '4x4', 'DRY': '1'},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    jobset = yaml.safe_load(done.stdout)
    assert action(jobset, errors.USER_ERROR) == 'FailJobSet'
    for code in (errors.INTERRUPTED, errors.FAILURE_AFTER_PROGRESS):
        assert action(jobset, code) == 'RestartJobSetAndIgnoreMaxRestarts'
    for code in (errors.FAILURE, KILLED):
        assert action(jobset, code) == 'RestartJobSet'  # up to maxRestarts
    job = jobset['spec']['replicatedJobs'][0]['template']['spec']
    assert job['podFailurePolicy']['rules'][2]['onPodConditions'] == [
        {'type': 'DisruptionTarget', 'status': 'True'}
    ]


@pytest.mark.parametrize(
    ('codes', 'expected'),
    [((0, 0), 0), ((1, 64), 64), ((1, 76), 76), ((1, 75), 75), ((3, 1), 3), ((76, 64), 64)],
)
def test_local_returns_the_most_informative_code(tmp_path, codes, expected):
    script = f'codes=({" ".join(map(str, codes))}); exit ${{codes[$RF_JAX_PROCESS]}}'
    done = subprocess.run(
        [LAUNCH / 'local.py', str(len(codes)), 'bash', '-c', script],
        env=os.environ | {'RF_JAX_LOGS': str(tmp_path)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == expected


def test_the_readme_of_the_launchers_lists_every_code():
    readme = (LAUNCH / 'README.md').read_text(encoding='utf-8')
    for code in (errors.DONE, errors.FAILURE, errors.USER_ERROR, errors.INTERRUPTED,
                 errors.FAILURE_AFTER_PROGRESS):  # fmt: skip
        assert f'| {code} |' in readme or f'| {code},' in readme

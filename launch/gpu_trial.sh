#!/usr/bin/env bash
# Benchmarks one GPU (H100 or H200) in ten minutes: training, attention and sampling in one table.
#   launch/gpu_trial.sh [--seconds=570] [--only=train,sample] [--record=gpu_trial.jsonl] [--tiny]
# WHEELS=folder installs rf_jax[gpu] from the wheels there, without a network, into a new virtual
# environment; without it PYTHON (default: python3) must have jax[cuda12] and what rf_jax needs.
# tokamax is measured if installed. Items that --record has for this card are not measured again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m venv .gpu_trial
  PYTHON=.gpu_trial/bin/python
  "$PYTHON" -m pip install --quiet --no-index --find-links="$WHEELS" 'setuptools' wheel
  "$PYTHON" -m pip install --quiet --no-index --find-links="$WHEELS" --no-build-isolation '.[gpu]'
  "$PYTHON" -m pip install --quiet --no-index --find-links="$WHEELS" tokamax ||
    echo 'gpu_trial.sh: no wheel of tokamax; its kernels are skipped' >&2
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}}
unset XLA_PYTHON_CLIENT_MEM_FRACTION # its old name: JAX refuses both at once
exec "$PYTHON" launch/gpu_trial.py "$@"

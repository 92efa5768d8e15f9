#!/usr/bin/env bash
# One process a GPU, on as many nodes as asked for; stops before the time limit and queues itself again.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/emoji.py --workdir=/shared/runs/emoji
# From the root of the repository, in an environment that has rf_jax. --workdir must lie on a file
# system that all nodes share.
#SBATCH --job-name=rf_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rf_jax-%j.log
# Not --gpus-per-task: JAX takes the GPU with the number of the task, so all have to be visible.
set -uo pipefail

RESTARTS=50  # after failures, such as a lost node, and stops before the time limit
stopped=''
trap 'stopped=1; kill -TERM "$step" 2>/dev/null' TERM

export RF_JAX_COORDINATOR=auto RF_JAX_UNFINISHED=75
srun --label --kill-on-bad-exit=0 --wait=45 python -m rf_jax.train "$@" &
step=$!
wait "$step"
code=$?
if [ -n "$stopped" ]; then  # the signal ended the first wait; the run is saving
  wait "$step"
  code=$?
fi
if [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$RESTARTS" ]; then
  echo "slurm.sh: code $code, queued again; the run resumes from its last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

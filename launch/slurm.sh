#!/usr/bin/env bash
# One process per GPU on any number of nodes; stops before the time limit and requeues itself.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/emoji.py --workdir=/shared/runs/emoji
# Run it from the root of the repository, in an environment with rf_jax. --workdir must be on a file
# system shared by all nodes, or in a bucket.
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
# Not --gpus-per-task: JAX uses the GPU with the index of the task, so all must be visible.
set -uo pipefail

: "${ATTEMPTS:=3}"  # failures in a row without a newer checkpoint before giving up
: "${RESTARTS:=50}" # times that the job may requeue itself
export RF_JAX_COORDINATOR=auto
# Since 22.05 srun ignores the --cpus-per-task of sbatch, so clusters that bind tasks may give each
# one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}

state() { squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T; }

stopped=''
stop() { # the time limit is near, or scancel has ended the job and signalled the tasks itself
  stopped=1
  # Not a signal to srun, which would kill the tasks at once: this one goes to the tasks.
  [ "$(state)" = COMPLETING ] || scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop TERM

requeue() { # not after scancel, which sends the same signal
  if [ "$(state)" = RUNNING ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$RESTARTS" ]; then
    echo "slurm.sh: code $code, requeued; the run resumes from its newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

fruitless=0 # consecutive failures without a new checkpoint
while :; do
  srun --label --kill-on-bad-exit=0 --wait=45 python -m rf_jax.train "$@" &
  step=$!
  wait "$step"
  code=$? # the highest of all tasks
  if [ -n "$stopped" ]; then # the signal interrupted the first wait; the run is saving
    wait "$step"
    code=$?
  fi
  case $code in # README.md
    0 | 64) exit "$code" ;;
    75) requeue ;;
    76) fruitless=0 ;;
    *) fruitless=$((fruitless + 1)) ;;
  esac
  [ -n "$stopped" ] && requeue
  if [ "$fruitless" -ge "$ATTEMPTS" ]; then
    echo "slurm.sh: $fruitless attempts in a row without a newer checkpoint, the last with code $code"
    exit "$code"
  fi
  echo "slurm.sh: code $code, restarting; the run resumes from its newest checkpoint"
  sleep 30
  [ -n "$stopped" ] && requeue
done

#!/usr/bin/env bash
# A run on a TPU pod slice of Google Cloud, through queued resources; starts again after preemption.
#   launch/tpu.sh NAME v5litepod-64 europe-west4-b --config=configs/emoji.py --workdir=/runs/emoji
# Run it from the root of the repository; it copies what is committed to all hosts. --workdir must
# be on a file system that all hosts share: SETUP, run before each attempt, mounts it; for example
#   SETUP='mountpoint -q /runs || { sudo mkdir -p /runs && sudo mount 10.0.0.2:/share /runs; }'
# RUNTIME is the TPU software version of the kind of chip, SPOT=0 asks for on-demand capacity. Which
# exit codes start the run again is listed in README.md; ATTEMPTS in a row may fail without progress.
# When it has ended: gcloud compute tpus queued-resources delete NAME --zone=ZONE --force
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 accelerator=$2 zone=$3
shift 3
case $accelerator in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac
runtime=${RUNTIME:-$runtime}
spot=()
[ "${SPOT:-1}" = 1 ] && spot=(--spot)

queue() { gcloud compute tpus queued-resources "$@" --zone="$zone" --quiet; }
everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

active() { # creates what is not there, deletes what was taken back, waits for the rest
  while :; do
    state=$(queue describe "$name" --format='value(state.state)' 2>/dev/null || echo NONE)
    echo "tpu.sh: $name is $state"
    case $state in
      ACTIVE) return 0 ;;
      NONE) queue create "$name" --node-id="$name" --accelerator-type="$accelerator" \
        --runtime-version="$runtime" "${spot[@]}" ;;
      SUSPENDED | FAILED) queue delete "$name" --force ;;
    esac
    sleep 30
  done
}

install() {
  git diff --quiet HEAD || echo 'tpu.sh: what is not committed stays here' >&2
  git archive --format=tar.gz --output=/tmp/rf_jax.tar.gz HEAD
  gcloud compute tpus tpu-vm scp /tmp/rf_jax.tar.gz "$name":~/ --zone="$zone" --worker=all
  everywhere "${SETUP:-true} && mkdir -p rf_jax && tar xzf rf_jax.tar.gz -C rf_jax \
    && python3 -m venv --system-site-packages env && env/bin/pip install --quiet -e 'rf_jax[tpu]'"
}


verdict() { # of the exit codes of the workers, one a line (README.md)
  if grep -qx 64 "$1"; then
    echo mistake
  elif grep -qxE '75|76' "$1"; then
    echo again
  elif [ "$2" = 0 ] && ! grep -qvx 0 "$1"; then
    echo done
  else
    echo fault
  fi
}

arguments=$(printf ' %q' "$@")
# gcloud ends with the code of the first worker, by number, that failed; each one's own says more.
train="cd rf_jax && RF_JAX_COORDINATOR=auto ../env/bin/python -m rf_jax.train$arguments
code=\$?; echo \"tpu.sh: exit code \$code\"; exit \$code"
codes=$(mktemp)
trap 'rm -f "$codes"' EXIT
fruitless=0 # attempts in a row that saved no checkpoint, and were not stopped by a signal either
while :; do
  active
  : >"$codes"
  ended=1
  if install; then
    everywhere "$train" | awk -v codes="$codes" \
      '{ print; fflush() } /^tpu\.sh: exit code [0-9]+$/ { print $NF >codes; fflush(codes) }' &&
      ended=0
  fi
  case $(verdict "$codes" "$ended") in
    done)
      echo 'tpu.sh: done'
      exit 0
      ;;
    mistake)
      echo 'tpu.sh: the same command would fail again: see the error above' >&2
      exit 64
      ;;
    again) fruitless=0 ;;
    fault) fruitless=$((fruitless + 1)) ;;
  esac
  if [ "$fruitless" -ge "${ATTEMPTS:-3}" ]; then
    echo "tpu.sh: $fruitless attempts in a row without a newer checkpoint: see the errors above" >&2
    exit 1
  fi
  echo 'tpu.sh: starting again; the run resumes from its newest checkpoint' >&2
  sleep 30
done

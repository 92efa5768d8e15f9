#!/usr/bin/env bash
# Runs training on a TPU pod slice of Google Cloud through queued resources; restarts when preempted.
#   launch/tpu.sh NAME v5litepod-64 europe-west4-b --config=configs/emoji.py --workdir=gs://B/emoji
# Run it from the root of the repository; it copies the committed files to all hosts. --workdir is in
# a bucket or on a disk shared by all hosts, which SETUP, run before each attempt, mounts, as in
#   SETUP='mountpoint -q /runs || { sudo mkdir -p /runs && sudo mount 10.0.0.2:/share /runs; }'
# RUNTIME overrides the TPU software version; SPOT=0 requests on-demand capacity. README.md lists the
# exit codes that restart the run; after ATTEMPTS failures in a row without progress it gives up.
# When it is done: gcloud compute tpus queued-resources delete NAME --zone=ZONE --force
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
spot=--spot
[ "${SPOT:-1}" = 1 ] || spot=''

queue() { gcloud compute tpus queued-resources "$@" --zone="$zone" --quiet; }
everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

state() { # of the resource, NONE only if Google says so: a lost connection is waited for
  for _ in {1..20}; do
    queue describe "$name" --format='value(state.state)' 2>"$errors" && return 0
    grep -q NOT_FOUND "$errors" && echo NONE && return 0
    cat "$errors" >&2
    sleep 30
  done
  return 1
}

active() { # creates the resource if missing, deletes it if preempted, waits until active
  while :; do
    state=$(state)
    echo "tpu.sh: $name is $state"
    case $state in
      ACTIVE) return 0 ;;
      NONE) queue create "$name" --node-id="$name" --accelerator-type="$accelerator" \
        --runtime-version="$runtime" ${spot:+"$spot"} ;;
      SUSPENDED | FAILED) queue delete "$name" --force ;;
    esac
    sleep 30
  done
}

uv='~/.local/bin/uv' # brings a Python: that of these machines is 3.10, too old for JAX
install() {
  git diff --quiet HEAD || echo 'tpu.sh: uncommitted changes are not copied' >&2
  git archive --format=tar.gz --output="$packed/rf_jax.tar.gz" HEAD &&
    gcloud compute tpus tpu-vm scp "$packed/rf_jax.tar.gz" "$name":~/ --zone="$zone" --worker=all &&
    everywhere "${SETUP:-true} && mkdir -p rf_jax && tar xzf rf_jax.tar.gz -C rf_jax \
    && { test -x $uv || curl -LsSf https://astral.sh/uv/install.sh | sh; } \
    && $uv venv --quiet --allow-existing --python '>=3.11' env \
    && $uv pip install --quiet --python env/bin/python -e './rf_jax[tpu,buckets]'"
}

verdict() { # from the exit codes of the workers, one per line (README.md)
  if grep -qx 64 "$1"; then
    echo user_error
  elif grep -qxE '75|76' "$1"; then
    echo restart
  elif [ "$2" = 0 ] && ! grep -qvx 0 "$1"; then
    echo done
  else
    echo failure
  fi
}

arguments=$(printf ' %q' "$@")
# gcloud only returns the code of the first failed worker, so each worker prints its own. A lost
# connection does not end what runs there: the next attempt waits for it.
train="cd rf_jax && { flock --nonblock ../running true || echo \"tpu.sh: waiting for the earlier\" \
  \"attempt on \$(hostname), which 'pkill -f rf_jax.train' on all workers stops\"; } &&
RF_JAX_COORDINATOR=auto flock ../running ../env/bin/python -m rf_jax.train$arguments
code=\$?; echo \"tpu.sh: exit code \$code\"; exit \$code"
packed=$(mktemp -d)
codes=$packed/codes errors=$packed/errors
trap 'rm -rf "$packed"' EXIT
fruitless=0 # consecutive failures without a new checkpoint
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
    user_error)
      echo 'tpu.sh: the same command would fail again; see the error above' >&2
      exit 64
      ;;
    restart) fruitless=0 ;;
    failure) fruitless=$((fruitless + 1)) ;;
  esac
  if [ "$fruitless" -ge "${ATTEMPTS:-3}" ]; then
    echo "tpu.sh: $fruitless attempts in a row without a newer checkpoint; see the errors above" >&2
    exit 1
  fi
  echo 'tpu.sh: restarting; the run resumes from its newest checkpoint' >&2
  sleep 30
done

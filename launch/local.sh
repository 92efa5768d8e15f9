#!/usr/bin/env bash
# N processes of one command on this machine, joined over loopback:
#   launch/local.sh 4 python -m rf_jax.train --config=configs/debug.py --workdir=runs/four
# Ends when all have ended; the exit code is that of the first that failed, and the rest is stopped.
exec python3 "$(dirname "$0")/local.py" "$@"

#!/usr/bin/env bash
# N processes of one command on this machine, joined over loopback:
#   launch/local.sh 4 python -m rf_jax.train --config=configs/debug.py --workdir=runs/four
# Exits when all have exited; if one fails, the others are stopped. The most informative exit code is
# returned (README.md).
exec python3 "$(dirname "$0")/local.py" "$@"

#!/usr/bin/env bash
# Runs training on TPU slices of GKE as a JobSet, which restarts when a host is lost.
#   IMAGE=europe-docker.pkg.dev/me/rf/rf_jax CLAIM=runs HOSTS=4 TOPOLOGY=4x4 \
#     launch/gke.sh NAME --config=configs/emoji.py --workdir=/runs/emoji
# IMAGE contains rf_jax[tpu], with this repository as working directory. HOSTS: machines per slice,
# CHIPS: chips per machine; SLICES, ACCELERATOR: see below. DRY=1 only prints the yaml.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
NAME=$1
shift
: "${IMAGE:?the container image}" "${CLAIM:?the volume claim shared by all hosts}"
: "${HOSTS:?machines per slice}" "${TOPOLOGY:?topology of a slice, as in 4x4}"
: "${CHIPS:=4}" "${SLICES:=1}" "${ACCELERATOR:=tpu-v5-lite-podslice}"
ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
export NAME IMAGE CLAIM HOSTS TOPOLOGY CHIPS SLICES ACCELERATOR ARGUMENTS
filled=$(python3 -c 'import os, string, sys
print(string.Template(sys.stdin.read()).substitute(os.environ))' \
  <"$(dirname "$0")/gke.yaml")
if [ "${DRY:-0}" = 1 ]; then
  echo "$filled"
else
  kubectl apply -f - <<<"$filled"
  echo "gke.sh: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
fi

#!/usr/bin/env bash
# Runs training on TPU slices of GKE as a JobSet, which restarts when a host is lost.
#   IMAGE=europe-docker.pkg.dev/me/rf/rf_jax CLAIM=runs HOSTS=4 TOPOLOGY=4x4 \
#     launch/gke.sh NAME --config=configs/emoji.py --workdir=/runs/emoji
# IMAGE contains rf_jax[tpu], with this repository as working directory. HOSTS: machines per slice,
# CHIPS: chips per machine; SLICES, ACCELERATOR: see below. DRY=1 only prints the yaml.
# Needs JobSet 0.10.1 or newer in the cluster. CLAIM is a volume claim (ReadWriteMany) that all hosts
# share, mounted at /runs; without it, --workdir is in a bucket, as in gs://bucket/runs/emoji.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
NAME=$1
shift
: "${IMAGE:?the container image}" "${CLAIM:=}"
: "${HOSTS:?machines per slice}" "${TOPOLOGY:?topology of a slice, as in 4x4}"
: "${CHIPS:=4}" "${SLICES:=1}" "${ACCELERATOR:=tpu-v5-lite-podslice}"
mount='' volume=''
if [ -n "$CLAIM" ]; then
  mount='
                  volumeMounts:
                    - name: runs
                      mountPath: /runs'
  volume="
              volumes:
                - name: runs
                  persistentVolumeClaim:
                    claimName: $CLAIM"
elif ! grep -qE -- '--workdir[= ](gs|s3)://' <<<"$*"; then
  echo "gke.sh: give CLAIM, or a --workdir in a bucket" >&2
  exit 2
fi
ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
manifest() {
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    # A lost host ends all; all restart and resume. The rules of the job below distinguish the exit
    # codes (README.md), and the rules here see them as the message of its failure.
    maxRestarts: 10 # failures without a newer checkpoint, over the whole run
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: ["rule at index 0"]
      - name: again
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: ["rule at index [12]"]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob # user error
                onExitCodes: {containerName: train, operator: In, values: [64]}
              - action: FailJob # stopped by a signal, or failed after progress
                onExitCodes: {containerName: train, operator: In, values: [75, 76]}
              - action: FailJob # the host is preempted
                onPodConditions: [{type: DisruptionTarget, status: "True"}]
          template:
            spec:
              restartPolicy: Never
              subdomain: $NAME
              terminationGracePeriodSeconds: 120 # SIGTERM saves after the current step
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: train
                  image: $IMAGE
                  command: ["python", "-m", "rf_jax.train"]
                  args: $ARGUMENTS
                  env:
                    - name: RF_JAX_COORDINATOR
                      value: auto
                  ports:
                    - containerPort: 8482 # JAX's coordinator
                    - containerPort: 8431 # TPU metrics
                  resources:
                    limits:
                      google.com/tpu: $CHIPS$mount$volume
EOF
}
if [ "${DRY:-0}" = 1 ]; then
  manifest
else
  manifest | kubectl apply -f -
  echo "gke.sh: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
fi

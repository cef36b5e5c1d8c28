#!/usr/bin/env bash
# Starts this node's ranks of a training example with torchrun. The examples call it when bash runs them:
#
#   GPUS_PER_NODE  ranks on this node             default: the GPUs of CUDA_VISIBLE_DEVICES, or all of nvidia-smi's
#   NNODES         nodes                          default: 1
#   NODE_RANK      this node's number, from 0     default: 0
#   MASTER_ADDR    host name of node 0            needed with several nodes
#   MASTER_PORT    a free port of node 0          default: 29500
#   MIXCPT_DEVICE  cpu: ranks on the CPU          GPUS_PER_NODE must then say how many
set -euo pipefail

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
torchrun="$root/.venv/bin/torchrun"
if [ ! -x "$torchrun" ]; then
    torchrun="$(command -v torchrun)" || fail "no torchrun in $root/.venv or on PATH; run 'bash tools/setup_env.sh' first"
fi

# The GPUs that a rank may take: nvidia-smi lists all of the node's, whatever CUDA_VISIBLE_DEVICES says.
count_gpus() {
    if [ "${MIXCPT_DEVICE:-}" = cpu ]; then
        echo 0
    elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cvE '^(-1|NoDevFiles|)$' || true
    else
        nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
    fi
}

ranks="${GPUS_PER_NODE:-$(count_gpus)}"
[ "$ranks" -gt 0 ] || fail "no GPU to start ranks on (nvidia-smi lists none, or CUDA_VISIBLE_DEVICES or" \
    "MIXCPT_DEVICE=cpu hides them); set GPUS_PER_NODE to the number of ranks to start on this node"
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" # kernels start in the order they are issued

nodes="${NNODES:-1}"
if [ "$nodes" -eq 1 ] && [ -z "${MASTER_PORT:-}" ]; then
    rendezvous=(--standalone) # chooses a free port, so that two runs on one node do not meet
else
    [ "$nodes" -eq 1 ] || [ -n "${MASTER_ADDR:-}" ] || fail "NNODES=$nodes needs MASTER_ADDR, the host name of node 0"
    rendezvous=(--nnodes "$nodes" --node-rank "${NODE_RANK:-0}")
    rendezvous+=(--master-addr "${MASTER_ADDR:-localhost}" --master-port "${MASTER_PORT:-29500}")
fi

trap '' USR1 # torchrun would die of Slurm's warning; the ranks take it and save a checkpoint (docs/how-to/recover.md)
exec "$torchrun" --nproc-per-node "$ranks" "${rendezvous[@]}" "$@"

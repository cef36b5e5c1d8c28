#!/usr/bin/env bash
# The tests with Transformer Engine, on a machine without a GPU: builds its PyTorch extension in build/transformer_engine
# (once; minutes, 1 GB of disk) and runs tests/transformer_engine. Arguments go to pytest:
#
#   bash tests/run_te.sh
#   bash tests/run_te.sh -k checkpoints -x
#
# Nothing is computed by Transformer Engine's kernels, which need a GPU; see docs/gpu.md.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh dev
packages="$(bash tests/transformer_engine/build.sh)"
export PYTHONPATH="$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}"
exec .venv/bin/python -m pytest -q -m transformer_engine tests/transformer_engine "$@"

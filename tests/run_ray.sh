#!/usr/bin/env bash
# The tests of preprocessing on a Ray cluster: installs Ray in build/ray (once; 250 MB), starts clusters of two nodes on
# this machine and runs tests/ray_cluster. Arguments go to pytest:
#
#   bash tests/run_ray.sh
#   bash tests/run_ray.sh -k killed -x
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh dev
if [[ ! -d build/ray/ray ]]; then
    .venv/bin/python -m pip install --quiet --target build/ray 'ray>=2.40,<3' # the extra `ray`
fi
export PYTHONPATH="$PWD:$PWD/build/ray${PYTHONPATH:+:$PYTHONPATH}" RAY_USAGE_STATS_ENABLED=0
exec .venv/bin/python -m pytest -q -m ray tests/ray_cluster "$@"

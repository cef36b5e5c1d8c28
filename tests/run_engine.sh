#!/usr/bin/env bash
# The suite on another version of megatron-core than the pinned one. It reports and does not gate: the exit code is 0
# whatever the tests say, and build/engine-VERSION/report.md tells what failed and which of the engine's functions that
# the package changes are other ones. Further arguments go to pytest:
#
#   bash tests/run_engine.sh 0.20.0
#   bash tests/run_engine.sh 0.20.0 tests/unit/training
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
version="${1:?error: name the version of megatron-core, for example: bash tests/run_engine.sh 0.20.0}"
shift
bash tools/setup_env.sh dev
folder="build/engine-$version"
if [[ ! -f "$folder/installed" ]]; then
    rm -rf "$folder"
    # The engine alone: torch and what else it needs stay those of .venv, so that one thing differs.
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --target "$folder/packages" \
        "megatron-core==$version"
    touch "$folder/installed"
fi
export MIXCPT_DEVICE=cpu
.venv/bin/python -m tests.engine_upgrade.entries >"$folder/entries-pinned.json"
export PYTHONPATH="$PWD/$folder/packages${PYTHONPATH:+:$PYTHONPATH}" # before .venv's own engine
.venv/bin/python -m tests.engine_upgrade.entries >"$folder/entries.json"
rm -f "$folder/tests.xml"
[[ $# -gt 0 ]] || set -- tests
.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --junitxml "$folder/tests.xml" "$@" ||
    true # the report says it
.venv/bin/python -m tests.engine_upgrade.report "$folder"

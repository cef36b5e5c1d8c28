#!/usr/bin/env bash
# Lint, format, types and all tests, in .venv (made first where it is missing). Arguments go to pytest:
#
#   bash tests/run.sh                 # everything, as the continuous integration runs it
#   bash tests/run.sh -k lssd -x      # some tests
#   bash tests/run.sh -n 0            # in one process, for example with --pdb
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh dev
export MIXCPT_DEVICE=cpu # on a machine with GPUs too: nothing here is about them

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two test processes: what tests of one rank leave idle, the ranks of another use. The tests of a file stay together; the
# longest, of several ranks, come first.
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests "$@"

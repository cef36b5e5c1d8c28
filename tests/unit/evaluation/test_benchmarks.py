"""Benchmark tasks are prepared before the model is read; ``tests/distributed/test_evaluate.py`` runs them."""

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.benchmarks import prepare_tasks
from megatron_mixcpt.evaluation.settings import TaskSettings


def test_code_is_not_run_unasked():
    with pytest.raises(ConfigError, match="--tasks humaneval runs programs that the model writes; allow this with"):
        prepare_tasks(TaskSettings(tasks=("humaneval",)))

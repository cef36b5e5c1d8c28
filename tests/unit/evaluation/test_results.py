"""The output folder: refused before the work where it cannot be made, whole or not there afterwards."""

import json

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.results import check_new, write_results


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    check_new(tmp_path / "new")
    with pytest.raises(ConfigError, match=f"--output {tmp_path} already exists; choose another, or remove it"):
        check_new(tmp_path)
    with pytest.raises(ConfigError, match="nowhere does not exist; create it first"):
        check_new(tmp_path / "nowhere" / "new")


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "new", {"value": float("nan")}, {})
    assert not list(tmp_path.iterdir())


def test_results_and_samples_are_written(tmp_path):
    write_results(tmp_path / "new", {"value": 0.5}, {"gsm8k": [{"answer": "é"}, {"answer": None}]})
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == {"value": 0.5}
    lines = (tmp_path / "new" / "samples-gsm8k.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"answer": "é"}, {"answer": None}]

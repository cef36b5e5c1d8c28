"""Flags of ``tools/evaluate.py``: what they make, and what is refused before any work is done."""

from pathlib import Path

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.arguments import evaluate_parser, evaluate_settings
from megatron_mixcpt.evaluation.benchmarks import prepare_tasks
from megatron_mixcpt.evaluation.perplexity import WindowSettings
from megatron_mixcpt.evaluation.settings import EvaluateSettings
from megatron_mixcpt.evaluation.suites import SUITES

MT_BENCH = ["--mt-bench", "questions.jsonl"]
JUDGE = ["--judge-url", "http://localhost:8000/v1", "--judge-model", "judge"]


def settings(*flags: str) -> EvaluateSettings:
    return evaluate_settings(evaluate_parser("").parse_args(["--hf-model", "model", "--output", "out", *flags]))


def test_what_flags_make(tmp_path):
    made = settings("--perplexity", "a=x", "b=y=z", "--sequence-length", "64", "--tasks", "code", "--num-fewshot", "2")
    assert made.text_sets == {"a": "x", "b": "y=z"}
    assert made.windows == WindowSettings(sequence_length=64, stride=64, batch_tokens=4096)
    assert made.tasks.suites == {"code": SUITES["code"]}
    humaneval, mbpp = SUITES["code"]
    assert [made.tasks.num_fewshot_of(task) for task in (humaneval, mbpp, SUITES["math"][0])] == [0, 3, 2]
    assert made.mt_bench is None and "--mt-bench" not in made.described()
    asked = settings(*MT_BENCH, *JUDGE, "--mt-bench-top-p", "0.5", "--task-data", str(tmp_path))
    assert asked.mt_bench is not None
    assert (asked.mt_bench.questions, asked.mt_bench.temperature, asked.mt_bench.top_p) == (Path(MT_BENCH[1]), 0.3, 0.5)
    assert asked.described() | {"--judge-model": "judge", "--mt-bench-top-p": 0.5} == asked.described()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to evaluate: give --perplexity NAME=PATH, --tasks, --mt-bench or several of them"),
        (["--perplexity", "texts"], "--perplexity texts: expected NAME=PATH"),
        (["--perplexity", "a=x", "a=y"], "--perplexity a=y: a is x already; give each a name of its own"),
        (["--perplexity", "a=x", "--stride", "2049"], "--stride 2049: expected 1 to --sequence-length 2048"),
        (["--perplexity", "a=x", "--stride", "0"], "--stride 0: expected 1 to --sequence-length 2048"),
        (["--perplexity", "a=x", "--batch-tokens", "0"], "--batch-tokens 0: expected at least 1"),
        (["--perplexity", "a=x", "--iteration", "3"], "--iteration 3 is of a Megatron checkpoint: give --load too"),
        (["--tasks", "maths"], "--tasks maths: no such suite or task; --list-suites shows what there is"),
        (["--tasks", "math", "--num-fewshot", "-1"], "--num-fewshot -1: expected at least 0"),
        (["--tasks", "math", "--task-limit", "0"], "--task-limit 0: expected at least 1"),
        (["--tasks", "math", "--task-data", "nowhere"], "--task-data nowhere: no such folder; check the path"),
        (MT_BENCH, "--mt-bench questions.jsonl: say who rates the answers, --judge-url and --judge-model"),
        ([*MT_BENCH, *JUDGE, "--judge-url", "file:///x"], "--judge-url file:///x: expected an address that begins"),
        ([*MT_BENCH, *JUDGE, "--mt-bench-temperature", "0"], "--mt-bench-temperature must be above 0"),
    ],
)
def test_what_is_refused(flags, message):
    with pytest.raises(ConfigError) as refused:
        settings(*flags)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_code_is_not_run_unasked():
    with pytest.raises(
        ConfigError, match="--tasks humaneval: runs programs that the model writes; allow it with --run-"
    ):
        prepare_tasks(settings("--tasks", "humaneval").tasks)


def test_the_suites_are_listed(capsys):
    with pytest.raises(SystemExit, match="0"):
        settings("--list-suites")
    assert "HumanEval; needs --run-generated-code\n" in capsys.readouterr().out

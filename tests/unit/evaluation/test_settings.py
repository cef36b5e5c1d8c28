"""Flags of ``tools/evaluate.py``: what they make, and what is refused before any work is done."""

from pathlib import Path

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.settings import EvaluateSettings
from megatron_mixcpt.evaluation.suites import SUITES
from megatron_mixcpt.evaluation.tool import build_parser
from megatron_mixcpt.flags import described, settings_from

MT_BENCH = ["--mt-bench", "questions.jsonl"]
SERVED = ["--base-url", "http://localhost:8000/v1", "--served-model", "tiny"]
JUDGE = ["--judge-url", "http://localhost:8000/v1", "--judge-model", "judge"]


def settings(*flags: str) -> EvaluateSettings:
    model = [] if "--load" in flags else ["--hf-model", "model"]
    return settings_from(build_parser().parse_args([*model, "--output", "out", *flags]), EvaluateSettings)


def test_what_flags_make(tmp_path):
    made = settings("--perplexity", "a=x", "b=y=z", "--sequence-length", "64", "--tasks", "code", "--num-fewshot", "2")
    assert made.texts.text_sets == {"a": "x", "b": "y=z"}
    assert (made.texts.sequence_length, made.texts.tokens_per_window, made.texts.batch_tokens) == (64, 64, 4096)
    assert settings("--perplexity", "a=x", "--stride", "3").texts.tokens_per_window == 3
    assert made.tasks.suites == {"code": SUITES["code"]}
    humaneval, mbpp = SUITES["code"]
    assert [made.tasks.num_fewshot_of(task) for task in (humaneval, mbpp, SUITES["math"][0])] == [0, 3, 2]
    assert made.mt_bench.questions is None
    asked = settings(*MT_BENCH, *JUDGE, "--mt-bench-top-p", "0.5", "--task-data", str(tmp_path))
    assert (asked.mt_bench.questions, asked.mt_bench.temperature, asked.mt_bench.top_p) == (Path(MT_BENCH[1]), 0.3, 0.5)
    assert settings("--load", "x", "--iteration", "3", "--tasks", "math").folder == Path("x")
    served = settings("--tasks", "math", *SERVED, "--num-concurrent", "32")
    assert (served.is_served, served.asks, served.server.num_concurrent, served.server.key) == (True, True, 32, None)


def test_the_record_is_of_what_decides():
    """The model has an entry of its own in ``results.json``; ranks and the judge's key decide nothing."""
    assert described(settings("--tasks", "math", "--perplexity", "a=x", "--stride", "9", *MT_BENCH, *JUDGE)) == {
        "--perplexity": ["a=x"],
        "--text-field": "text",
        "--sequence-length": 2048,
        "--stride": 9,
        "--bos": True,
        "--batch-tokens": 4096,
        "--tasks": ["math"],
        "--task-data": None,
        "--num-fewshot": None,
        "--task-limit": None,
        "--task-batch-size": 8,
        "--apply-chat-template": False,
        "--run-generated-code": False,
        "--mt-bench": "questions.jsonl",
        "--judge-url": "http://localhost:8000/v1",
        "--judge-model": "judge",
        "--mt-bench-temperature": 0.3,
        "--mt-bench-top-p": 0.9,
        "--mt-bench-max-new-tokens": 1024,
        "--dtype": "bfloat16",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to evaluate: give --perplexity NAME=PATH, --tasks or --mt-bench"),
        (["--load", "x", "--hf-model", "y", "--tasks", "math"], "give the model with either --hf-model"),
        (["--perplexity", "texts"], "--perplexity texts: expected NAME=PATH"),
        (["--perplexity", "a=x", "a=y"], "--perplexity a=y: a is already x; give each path a different name"),
        (["--perplexity", "a=x", "--stride", "2049"], "--stride 2049: must be between 1 and --sequence-length (2048)"),
        (["--perplexity", "a=x", "--stride", "0"], "--stride 0: must be between 1 and --sequence-length (2048)"),
        (["--perplexity", "a=x", "--batch-tokens", "0"], "--batch-tokens 0: must be at least 1"),
        (
            ["--perplexity", "a=x", "--iteration", "3"],
            "--iteration 3 is not used with --hf-model; remove it, or use",
        ),
        (["--tasks", "maths"], "--tasks maths: no such suite or task; --list-suites lists them"),
        (["--tasks", "math", "--num-fewshot", "-1"], "--num-fewshot -1: must be at least 0"),
        (["--tasks", "math", "--task-limit", "0"], "--task-limit 0: must be at least 1"),
        (["--tasks", "math", "--task-data", "nowhere"], "--task-data nowhere: no such folder; check the path"),
        (["--tasks", "math", "--num-concurrent", "0"], "--num-concurrent 0: must be at least 1"),
        (["--tasks", "math", "--served-model", "x"], "--served-model is not used without --base-url"),
        (["--tasks", "math", "--base-url", SERVED[1]], "name the model that it serves with --served-model"),
        (["--tasks", "math", *SERVED, "--base-url", "localhost"], "--base-url localhost: expected an address that"),
        (["--tasks", "math", *SERVED, "--server-key", "NOT_SET"], "--server-key NOT_SET: this environment variable is"),
        (["--perplexity", "a=x", *SERVED], "--perplexity a=x is not measured through --base-url"),
        (["--load", "x", "--tasks", "math", *SERVED], "--load x is not used with --base-url: export it with"),
        (["--tasks", "math", *SERVED, "--dtype", "float32"], "--dtype float32 is not used with --base-url"),
        (["--tasks", "math", *SERVED, "--task-batch-size", "4"], "--task-batch-size 4 is not used with --base-url"),
        (MT_BENCH, "--mt-bench questions.jsonl: name the judge with --judge-url and --judge-model"),
        ([*MT_BENCH, *JUDGE, "--judge-url", "file:///x"], "--judge-url file:///x: expected an address that begins"),
        ([*MT_BENCH, *JUDGE, "--mt-bench-top-p", "1.1"], "--mt-bench-top-p 1.1: must be greater than 0 and at most 1"),
        ([*MT_BENCH, *JUDGE, "--mt-bench-temperature", "0"], "--mt-bench-temperature 0.0: must be greater than 0"),
    ],
)
def test_what_is_refused(flags, message):
    with pytest.raises(ConfigError) as refused:
        settings(*flags)
    assert message in str(refused.value) and "\n" not in str(refused.value)

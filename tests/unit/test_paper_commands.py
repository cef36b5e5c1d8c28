"""The paper's experiments as commands: every line of every row is one that our tools accept."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from examples.paper.commands import DOMAINS, METHODS, commands
from megatron_mixcpt.data.preprocessing.tool import build_parser
from megatron_mixcpt.data.reading.record_flags import record_settings
from megatron_mixcpt.evaluation.settings import EvaluateSettings
from megatron_mixcpt.evaluation.tool import build_parser as evaluate_parser
from megatron_mixcpt.flags import settings_from
from megatron_mixcpt.selection import score_tool
from megatron_mixcpt.selection.select_tool import build_parser as select_parser
from megatron_mixcpt.selection.settings import SelectSettings


def parse_mixture(words: list[str]) -> None:
    """The settings of each kind; the tokenizer, which the rest needs, is not here."""
    arguments = build_parser().parse_args(words)
    for kind in ("cpt", "sft", "dpo"):
        record_settings(kind, arguments)


# Tool -> takes its flags; raises where it does not accept them.
PARSERS: dict[str, Callable[[list[str]], object]] = {
    "tools/preprocess_mixture.py": parse_mixture,
    "tools/score_alignment.py": lambda words: score_tool.settings_of(score_tool.build_parser().parse_args(words)),
    "tools/select_alignment.py": lambda words: settings_from(select_parser().parse_args(words), SelectSettings),
    "tools/evaluate.py": lambda words: settings_from(evaluate_parser().parse_args(words), EvaluateSettings),
}
ROWS = list(product(("llama3", "qwen2"), DOMAINS, METHODS))

# In a separate process, for all trainings at once: importing the engine takes seconds and changes the process.
PARSE = """
import json, sys
from megatron_mixcpt import cpu_emulation
cpu_emulation.install()
from megatron_mixcpt.config import DPOConfig, MixCPTConfig, SFTConfig
from megatron_mixcpt.flags import settings_from
from megatron_mixcpt.training.engine.arguments import explicit_arguments
settings = {"pretrain": MixCPTConfig, "sft": SFTConfig, "dpo": DPOConfig}
for script, flags in json.load(sys.stdin):
    config = settings[script.split("/")[1].split("_")[0]]
    values = explicit_arguments(flags, config)
    settings_from(values, config)
    print("PARSED", json.dumps(values, default=str))
"""


def row(model: str, domain: str, method: str, strategy: str = "high") -> list[list[str]]:
    """The words of each command of a row."""
    lines = commands(model, domain, method, strategy, Path("my data"), Path("out"))
    return [shlex.split(line.split(" || ")[-1]) for line in lines]


def test_stages_of_each_method() -> None:
    scripts = {
        method: [next(word for word in words if "/" in word) for words in row("llama3", "math", method)]
        for method in METHODS
    }
    train, sft, dpo = (f"examples/{name}_llama3.sh" for name in ("pretrain_mixcpt", "sft", "dpo"))
    before, after = ["tools/preprocess_mixture.py", train], ["tools/convert_to_hf.py", "tools/evaluate.py"]
    selection = ["tools/score_alignment.py", "tools/select_alignment.py", "tools/select_alignment.py"]
    assert scripts["cpt"] == [*before, *after]
    assert scripts["csd"] == [*before, sft, dpo, *after]
    assert {tuple(scripts[method]) for method in METHODS if method not in ("cpt", "csd")} == {
        (*before, *selection, sft, dpo, *after)
    }


@pytest.mark.parametrize("method", METHODS)
def test_tools_accept_the_flags(method: str) -> None:
    for domain in DOMAINS:
        for words in row("llama3", domain, method):
            script = next(word for word in words if "/" in word)
            if script in PARSERS:
                PARSERS[script](words[words.index(script) + 1 :])


def test_trainers_accept_the_flags() -> None:
    trainings = [words[1:] for each in ROWS for words in row(*each) if words[0] == "bash"]
    # Whatever the paths are, one of them stands for all: each parse takes a tenth of a second.
    same = [["path" if word.startswith(("out/", "my data/")) else word for word in words] for words in trainings]
    unique = sorted({json.dumps([script, flags]) for script, *flags in same})
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=f"[{','.join(unique)}]", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    values = [json.loads(line.removeprefix("PARSED ")) for line in done.stdout.splitlines() if "PARSED" in line]
    assert len(values) == len(unique)
    methods = {value["distillation"] for value in values if "distillation" in value}
    assert methods == {"none", "lssd", "kd", "l2"}


def test_what_is_written_is_what_the_next_stage_reads() -> None:
    """Each path that a command reads below the output folder was written by an earlier one."""
    for model, domain, method in ROWS:
        written: set[str] = set()
        for words in row(model, domain, method):
            flags = dict(zip(words, words[1:], strict=False))
            for flag in ("--load", "--mixture", "--scores", "--sft", "--dpo"):
                if flags.get(flag, "").startswith("out/"):
                    assert flags[flag] in written, (words, written)
            written |= {flags[flag] for flag in ("--output", "--save") if flag in flags}

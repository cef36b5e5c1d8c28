"""Every flag of the engine is served, the model's, or refused, and the trainers treat it so.

A flag that the engine gains fails ``test_every_flag_is_in_one_class`` until someone decides: it holds here as the
engine documents it (``flag_table.py``, or ``harmless_flags.py`` if it may differ between a run and what it resumes),
or it is refused (``refused_flags.py``; ``decided_flags.py`` for one kind of training). What megatron-core 0.20 has
beyond 0.19 is refused until it is decided, and stands in ``new_flags_0_20.txt``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest
from megatron.core import package_info
from megatron.training.arguments import add_megatron_arguments

from megatron_mixcpt.config import DPOConfig, MixCPTConfig, SFTConfig
from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import Parser
from megatron_mixcpt.training.engine.arguments import explicit_arguments, refuse_decided
from megatron_mixcpt.training.engine.decided_flags import DECIDED_IN_ALIGNMENT, DECIDED_IN_PRETRAINING
from megatron_mixcpt.training.engine.flag_table import OF_THE_MODEL, SERVED, classes_of, engine_arguments, flag_of, main
from megatron_mixcpt.training.engine.harmless_flags import HARMLESS_ENGINE_ARGUMENTS
from megatron_mixcpt.training.engine.refused_flags import REFUSED

NEW_IN_0_20, GONE_IN_0_20 = set[str](), set[str]()
if package_info.MINOR >= 20:
    NEW_IN_0_20 = set(Path(__file__).with_name("new_flags_0_20.txt").read_text().split())
    GONE_IN_0_20 = {"moe_ncclep_static_shape", "stream_ckpt_dequant"}
PARSER = add_megatron_arguments(Parser())
ACTIONS = {action.dest: action for action in reversed(PARSER._actions)}
VALUES = ("3", "0.25", "x", "[1]", "fp32", "bfloat16", "attn", "0")


def test_every_flag_is_in_one_class() -> None:
    known = {name: classes_of(name) for name in engine_arguments() if flag_of(name) not in NEW_IN_0_20}
    assert {name: kinds for name, kinds in known.items() if len(kinds) != 1} == {}
    tables = (REFUSED, OF_THE_MODEL, SERVED, HARMLESS_ENGINE_ARGUMENTS, DECIDED_IN_ALIGNMENT, DECIDED_IN_PRETRAINING)
    assert {name for table in tables for name in table} - known.keys() == GONE_IN_0_20


def accepted(action: argparse.Action) -> list[str]:
    """The flag with a value that its parser takes and that is not its default."""
    flag = action.option_strings[0]
    number = action.nargs if isinstance(action.nargs, int) else 1
    for value in [getattr(choice, "name", str(choice)) for choice in action.choices or ()] or VALUES:
        argv = [flag, *[value] * number]
        try:
            found = getattr(PARSER.parse_args(argv), action.dest)
        except (ConfigError, KeyError, ValueError, AttributeError, AssertionError):
            continue
        if found != action.default:
            return argv
    raise AssertionError(f"no value for {flag}")


def refusal(argv: Sequence[str], config: type = MixCPTConfig) -> str:
    try:
        explicit_arguments(argv, config)
    except ConfigError as error:
        return str(error)
    return ""


def test_each_refused_flag_is_refused_by_name() -> None:
    for name in REFUSED.keys() - GONE_IN_0_20:
        argv = accepted(ACTIONS[name])
        assert refusal(argv) == f"{flag_of(name)} is not supported ({REFUSED[name]}); remove it", argv


def test_each_other_flag_is_taken() -> None:
    for name in (SERVED.keys() | HARMLESS_ENGINE_ARGUMENTS.keys() | OF_THE_MODEL) - GONE_IN_0_20:
        argv = accepted(ACTIONS[name])
        assert refusal(argv) == "", argv


def test_the_engines_own_default_is_not_refused() -> None:
    argv = ["--cuda-graph-impl", "none", "--optimizer-offload-fraction", "1.0"]
    assert explicit_arguments(argv, MixCPTConfig) == {"cuda_graph_impl": "none", "optimizer_offload_fraction": 1.0}


def test_a_flag_that_nothing_decides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SERVED, "clip_grad")
    assert refusal(["--clip-grad", "0.5"]).startswith("--clip-grad is new in this release of the engine")


def test_flags_that_a_trainer_decides() -> None:
    for decided in (DECIDED_IN_PRETRAINING, DECIDED_IN_ALIGNMENT):
        for name, reason in decided.items():
            with pytest.raises(ConfigError) as error:
                refuse_decided({name: None}, decided)
            assert str(error.value) == f"{flag_of(name)} is not used here ({reason}); remove it"


def test_what_the_architectures_set_is_the_models() -> None:
    set_by_tables = {name for item in ARCHITECTURES.values() for name in (*item.arguments, *item.config_map.values())}
    assert set_by_tables <= OF_THE_MODEL


# Case 39 and B3: what pretrain_gpt.py or the engine take, and would have been ignored.
@pytest.mark.parametrize(
    "argv",
    [
        ["--rampup-batch-size", "2", "2", "12"],
        ["--step-batch-size-schedule", "0:8 1M:16"],
        ["--mock-data"],
        ["--fim-data"],
        ["--fim-rate", "0.3"],
        ["--data-args-path", "f"],
        ["--per-dataset-sequences-path", "f"],
        ["--logits-load-dir", "d"],
        ["--logits-save-dir", "d"],
        ["--logits-save-top-k", "8"],
        ["--hybrid-context-parallel"],
        ["--dataloader-type", "external"],
    ],
)
@pytest.mark.parametrize("config", [MixCPTConfig, SFTConfig, DPOConfig])
def test_flags_that_were_ignored(argv: list[str], config: type) -> None:
    assert refusal(argv, config).startswith(f"{argv[0]} ") and "\n" not in refusal(argv, config)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(engine_arguments()) - len(NEW_IN_0_20)
    assert any(line.startswith("--clip-grad") and "served" in line and "the optimizer" in line for line in printed)


@pytest.mark.parametrize("config_class", (MixCPTConfig, SFTConfig, DPOConfig))
def test_help_is_shown_whatever_percent_signs_the_engine_writes(config_class, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        explicit_arguments(["--help"], config_class)
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--hf-model" in shown and "--tensor-model-parallel-size" in shown
    assert "%%" not in shown

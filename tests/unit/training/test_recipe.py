"""A recipe's command line: defaults first, paths from the environment or flags, the user's flags last."""

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.training.recipe import PRETRAIN_PATHS, SFT_PATHS, flag_value, recipe_argv, run_recipe

ENVIRONMENT = {"HF_MODEL": "/models/base", "MIXTURE": "/data/mixture", "SAVE": "/checkpoints"}
DEFAULTS = """
    --bf16 --lr 2e-5  # the paper's
    --alpha 0.8
"""


def test_the_users_flags_come_last() -> None:
    argv = recipe_argv(DEFAULTS, ["--lr", "1e-5"], ENVIRONMENT)
    assert argv[:5] == ["--bf16", "--lr", "2e-5", "--alpha", "0.8"]
    assert argv[-2:] == ["--lr", "1e-5"]


def test_paths_come_from_the_environment_and_a_restart_resumes() -> None:
    argv = recipe_argv(DEFAULTS, [], ENVIRONMENT)
    flags = {
        "--hf-model": "/models/base",
        "--mixture": "/data/mixture",
        "--save": "/checkpoints",
        "--load": "/checkpoints",
    }
    assert {flag: flag_value(argv, flag) for flag in flags} == flags


@pytest.mark.parametrize("given", [["--save", "/other"], ["--save=/other"]])
def test_a_flag_wins_over_the_environment(given: list[str]) -> None:
    argv = recipe_argv(DEFAULTS, given, ENVIRONMENT)
    assert flag_value(argv, "--save") == flag_value(argv, "--load") == "/other"


def test_load_of_the_users_own_is_kept() -> None:
    argv = recipe_argv(DEFAULTS, ["--load", "/elsewhere"], ENVIRONMENT)
    assert flag_value(argv, "--load") == "/elsewhere"


@pytest.mark.parametrize("name", PRETRAIN_PATHS)
def test_a_missing_path_is_named(name: str) -> None:
    environment = {key: value for key, value in ENVIRONMENT.items() if key != name}
    flag = PRETRAIN_PATHS[name][0]
    with pytest.raises(ConfigError, match=f"{flag} nor the environment variable {name}"):
        recipe_argv(DEFAULTS, [], environment)
    assert flag_value(recipe_argv(DEFAULTS, [flag, "/given"], environment), flag) == "/given"


def test_help_needs_no_paths() -> None:
    assert recipe_argv(DEFAULTS, ["--help"], {})[-1] == "--help"


def test_a_missing_path_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["example.sh"])
    for name in PRETRAIN_PATHS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit):
        run_recipe(lambda argv: None, DEFAULTS)
    error = capsys.readouterr().err
    assert error.startswith("error: neither --hf-model") and error.count("\n") == 1


def test_alignment_starts_from_a_checkpoint_or_a_model_folder() -> None:
    environment = {"LOAD": "/checkpoints/cpt", "SFT": "/data/sft.jsonl", "SAVE": "/checkpoints/sft"}
    assert flag_value(recipe_argv(DEFAULTS, [], environment, SFT_PATHS), "--load") == "/checkpoints/cpt"
    from_folder = recipe_argv(DEFAULTS, ["--hf-model", "/models/base"], environment, SFT_PATHS)
    assert flag_value(from_folder, "--load") is None and flag_value(from_folder, "--save") == "/checkpoints/sft"

"""The shipped examples: valid shell, valid Python where they are Python too, flags that the training entry accepts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = [
    ".ci/run",
    "benchmarks/gpu/pack.sh",
    "examples/dpo_llama3.sh",
    "examples/dpo_qwen2.sh",
    "examples/launch_torchrun.sh",
    "examples/mixcpt_full.sh",
    "examples/pretrain_mixcpt_llama3.sh",
    "examples/pretrain_mixcpt_lora_llama3.sh",
    "examples/pretrain_mixcpt_qwen2.sh",
    "examples/quickstart.sh",
    "examples/quickstart/stages.sh",
    "examples/sft_llama3.sh",
    "examples/sft_qwen2.sh",
    "examples/slurm/pretrain_mixcpt.sbatch",
    "tests/run.sh",
    "tests/run_engine.sh",
    "tests/run_ray.sh",
    "tests/run_te.sh",
    "tests/transformer_engine/build.sh",
    "tools/setup_env.sh",
]
RECIPES = ["examples/pretrain_mixcpt_llama3.sh", "examples/pretrain_mixcpt_qwen2.sh"]
LORA = "examples/pretrain_mixcpt_lora_llama3.sh"
# The paper's settings of format alignment (section 3.1, appendix).
ALIGNMENT = {
    "examples/sft_llama3.sh": {"lr": 5e-6},
    "examples/sft_qwen2.sh": {"lr": 5e-7},
    "examples/dpo_llama3.sh": {"lr": 5e-7, "beta": 0.01},
    "examples/dpo_qwen2.sh": {"lr": 1e-7, "beta": 0.1},
}
DEVICES = ("CUDA_VISIBLE_DEVICES", "MIXCPT_DEVICE")
ENVIRONMENT = {"HF_MODEL": "/models/base", "MIXTURE": "/data/mixture", "SAVE": "/checkpoints"}

# Runs in a separate process: the emulation must be installed before Megatron is imported, and stays installed.
PARSE = """
import json, os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))  # as Python does for the script it runs
from megatron_mixcpt import config
from megatron_mixcpt.training import recipe

def show(main, flags, paths):
    from megatron_mixcpt.training.engine.arguments import explicit_arguments
    stage = main.__module__.rsplit(".", 1)[1]
    settings = {"cpt": config.MixCPTConfig, "sft": config.SFTConfig, "dpo": config.DPOConfig}[stage]
    values = explicit_arguments(recipe.recipe_argv(flags, sys.argv[2:], os.environ, paths), settings)
    print("PARSED", json.dumps(values, default=str))

recipe.run_recipe = show
runpy.run_path(sys.argv[1], run_name="__main__")
"""
# What the paper states (section 3.1) and the base models allow; a world of 8 ranks holds whole copies.
PAPER = {"alpha": 0.8, "global_batch_size": 1920, "seq_length": 2048, "lr": 2e-5, "min_lr": 5e-6, "bf16": True}


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with ``changes``, without what a launcher or a user may have set."""
    names = ("GPUS_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", *DEVICES, *ENVIRONMENT)
    return {name: value for name, value in os.environ.items() if name not in names} | changes


def launched_with(repository: Path, folder: Path, example: str, **changes: str) -> list[str]:
    """The arguments that ``bash example --alpha 0.5`` hands to torchrun, a stand-in of which prints them."""
    stand_in = folder / "torchrun"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    # A copy, for in the repository itself the real torchrun of its .venv would be taken.
    (folder / "examples").mkdir(exist_ok=True)
    for name in (example, "examples/launch_torchrun.sh"):
        (folder / name).write_text((repository / name).read_text(encoding="utf-8"), encoding="utf-8")
    result = subprocess.run(
        ["bash", str(folder / example), "--alpha", "0.5"],
        env=environment(PATH=f"{folder}:{os.environ['PATH']}", **changes),
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.splitlines() or [result.stderr.strip()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_syntax(repository: Path, script: str) -> None:
    result = subprocess.run(["bash", "-n", str(repository / script)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_script_is_listed(repository: Path) -> None:
    found = {
        str(path.relative_to(repository))
        for folder in ("benchmarks", "examples", "tests", "tools")
        for path in (repository / folder).rglob("*")
        if path.suffix in (".sh", ".sbatch")
    }
    assert found | {".ci/run"} == set(SCRIPTS)


def parsed(repository: Path, example: str, *flags: str, **paths: str) -> dict:
    """What a recipe's full command line says to the engine and to us."""
    result = subprocess.run(
        [sys.executable, "-c", PARSE, str(repository / example), *flags],
        env=environment(PYTHONPATH=str(repository), **paths),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("PARSED "))
    return json.loads(line.removeprefix("PARSED "))


@pytest.mark.parametrize("example", RECIPES)
def test_recipe_has_the_papers_settings_and_can_be_overridden(repository: Path, example: str) -> None:
    values = parsed(repository, example, "--lr", "1e-5", **ENVIRONMENT)
    expected = PAPER | {"lr": 1e-5, "hf_model": "/models/base", "save": "/checkpoints", "load": "/checkpoints"}
    assert {name: values.get(name) for name in expected} == expected
    model_ranks = values["tensor_model_parallel_size"] * values["pipeline_model_parallel_size"]
    assert 8 % model_ranks == 0 and 1920 % (8 // model_ranks * values["micro_batch_size"]) == 0


def test_adapters_train_on_one_gpu(repository: Path) -> None:
    """The paper's objective and sequences; no tensor parallelism unless the command line asks for it."""
    values = parsed(repository, LORA, **ENVIRONMENT)
    expected = {name: PAPER[name] for name in ("alpha", "seq_length", "bf16")} | {"lora_rank": 16, "lr": 2e-4}
    assert {name: values.get(name) for name in expected} == expected
    assert "tensor_model_parallel_size" not in values and not values.get("sequence_parallel")


@pytest.mark.parametrize("example", ALIGNMENT)
def test_alignment_recipe_has_the_papers_settings(repository: Path, example: str) -> None:
    paths = {"LOAD": "/checkpoints/before", "SFT": "/data/sft", "DPO": "/data/dpo", "SAVE": "/checkpoints/after"}
    values = parsed(repository, example, **paths)
    expected = ALIGNMENT[example] | {"epochs": 2, "global_batch_size": 128, "load": paths["LOAD"]}
    assert {name: values.get(name) for name in expected} == expected


@pytest.mark.parametrize("example", [*RECIPES, LORA, *ALIGNMENT])
def test_bash_starts_torchrun_with_the_same_file(repository: Path, tmp_path: Path, example: str) -> None:
    launched = launched_with(repository, tmp_path, example, GPUS_PER_NODE="8")
    assert launched == ["--nproc-per-node", "8", "--standalone", str(tmp_path / example), "--alpha", "0.5"]


@pytest.mark.parametrize(
    "changes, ranks",
    [
        ({}, "3"),  # nvidia-smi's, without the lines of MIG's parts
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"MIXCPT_DEVICE": "cpu"}, None),
        ({"MIXCPT_DEVICE": "cpu", "GPUS_PER_NODE": "4"}, "4"),
    ],
)
def test_a_rank_is_started_for_each_gpu(
    repository: Path, tmp_path: Path, changes: dict[str, str], ranks: str | None
) -> None:
    gpus = "".join(f"GPU {number}: NVIDIA H100 (UUID: GPU-{number})\n" for number in range(3))
    (tmp_path / "listed").write_text(f"{gpus}  MIG 1g.10gb     Device  0: (UUID: MIG-1)\n")
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/listed\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    launched = launched_with(repository, tmp_path, RECIPES[0], **changes)
    if ranks is None:
        assert launched[0].startswith("error: no GPU to start ranks on") and len(launched) == 1
    else:
        assert launched[:2] == ["--nproc-per-node", ranks]


def test_several_nodes_meet_at_the_master(repository: Path, tmp_path: Path) -> None:
    nodes = {"GPUS_PER_NODE": "8", "NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "29511"}
    launched = " ".join(launched_with(repository, tmp_path, RECIPES[0], **nodes))
    assert "--nnodes 4 --node-rank 3 --master-addr node0 --master-port 29511" in launched
    (error,) = launched_with(repository, tmp_path, RECIPES[0], GPUS_PER_NODE="8", NNODES="4")
    assert error.startswith("error: NNODES=4 needs MASTER_ADDR")


def test_the_quickstart_s_table_shows_the_change_with_its_sign() -> None:
    """By hand: from 20 to 15 is a quarter less, from 1.0 to 1.1 a tenth more."""
    from examples.quickstart.report import table

    before = {"law": {"tokens": 700, "perplexity": 20.0, "bits_per_byte": 1.0}}
    after = {"law": {"tokens": 700, "perplexity": 15.0, "bits_per_byte": 1.1}}
    _, perplexity, bits = table(before, after).splitlines()
    assert perplexity.split() == ["law", "700", "perplexity", "20.000", "15.000", "-25.0%"]
    assert bits.split() == ["bits", "per", "byte", "1.000", "1.100", "+10.0%"]

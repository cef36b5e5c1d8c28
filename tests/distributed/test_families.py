"""Every family of models at real layouts: conversion, logits, gradients and checkpoints, beside transformers.

One run of ranks for each layout takes all kinds through. Logits are compared within 1e-5 of values around 1: both sides
compute in float32, in another order of sums. What is exported from the engine's checkpoint is compared bit for bit.
First training losses at all layouts: ``benchmarks/parity/first_iteration.py``; all figures:
``benchmarks/parity/families.py``.
"""

from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.planning.shapes import model_shape
from tests.distributed.families import export, figures_at, generate, make_folder, read_all, round_trip, tolerance_of
from tests.distributed.tiny_models import KINDS, has_experts, kinds_of_architectures

ONE_EACH = [kinds[0] for kinds in kinds_of_architectures().values()]
# Rotary scalings are compared in test_rope_scaling.py.
TRIED = [kind for kind in KINDS if not kind.startswith("llama-") or kind == "llama-bias"]
EXPERTS = [kind for kind in ONE_EACH if has_experts(kind)]
# Where the layers of a stage are not those of every stage, and where attention or what stands for it is not Llama's.
# The record that test_registry.py asks for has all layouts of all families.
LAYERS_DIFFER = ["llama", "smollm3", "olmo3", "exaone4", "gemma3", "cohere2", "apertus", "gemma3-tower", "qwen3-5"]
LAYERS_DIFFER += ["qwen3-next", "gpt-oss", "qwen2-moe", "glm4-moe", "deepseek-v3"]
ATTENTION_DIFFERS = ["llama", "mistral-window", "olmo2", "gemma2", "ministral3", "gpt-oss", "qwen3-5", "deepseek-v2"]
KINDS_AT = {
    "1x1": TRIED,
    "TP2+SP": ONE_EACH,
    "PP2": LAYERS_DIFFER,
    "EP2": EXPERTS,
    "CP2": ATTENTION_DIFFERS,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind, as ``families.make_folder`` fills it."""
    root = tmp_path_factory.mktemp("families")
    for kind in TRIED:
        make_folder(kind, root)
    return root


@pytest.mark.parametrize("layout", KINDS_AT)
def test_every_family_at(layout: str, folders: Path, tmp_path: Path) -> None:
    for kind, figures in figures_at(layout, KINDS_AT[layout], folders, tmp_path / "saved", timeout_s=600).items():
        assert figures.pop("exported"), kind
        assert all(figure <= tolerance_of(kind) for figure in figures.values()), (kind, figures)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_round_trip_in_half_precision(kind: str, tmp_path: Path) -> None:
    assert round_trip(kind, tmp_path, torch.bfloat16)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_export_generates_what_the_source_does(kind: str, folders: Path) -> None:
    export(folders / kind / "release", folders / kind / "exported", folders / kind / "hf")
    assert generate(folders / kind / "exported") == generate(folders / kind / "hf")


@pytest.mark.parametrize("kind", TRIED)
def test_planner_counts_the_parameters_of(kind: str, folders: Path) -> None:
    trained = read_config(folders / kind / "hf").hf_shapes()
    sizes = [tensor.numel() for name, tensor in read_all(folders / kind / "hf").items() if name in trained]
    assert model_shape(str(folders / kind / "hf")).num_parameters == sum(sizes)

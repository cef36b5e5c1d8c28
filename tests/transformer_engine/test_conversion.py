"""Weights through Transformer Engine's layers: the same tensors as ours, the same checkpoints, transformers' logits.

The ranks of ``tests/distributed/families.py`` run here with Transformer Engine's layers, whose arithmetic
the stand-ins do: Hugging Face folders read straight into them, converted releases read and checkpoints saved by the
engine's own functions, logits within 1e-5 of transformers and exports compared bit for bit, every family at every
layout. Beside that, both kinds of layers are compared with one another and with the plan.
"""

from pathlib import Path

import pytest
import torch

from megatron_mixcpt.testing import run_distributed
from tests.distributed import families
from tests.distributed.test_families import EXPERTS, KINDS_AT, folders  # noqa: F401 - a fixture

# Families that were run on Transformer Engine's layers; it refuses some of the others, and the rest is untried there.
SERVED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "mixtral", "qwen3-moe")
DENSE = tuple(kind for kind in SERVED if kind not in EXPERTS)


@pytest.mark.parametrize("layout", [layout for layout in KINDS_AT if layout != "CP2"])
def test_logits_and_exports_of_every_family_at(layout: str, folders: Path, tmp_path: Path) -> None:  # noqa: F811
    kinds = [kind for kind in KINDS_AT[layout] if kind in SERVED]
    found = families.figures_at(layout, kinds, folders, tmp_path / "saved", check=check_kinds)
    for kind, figures in found.items():
        assert figures.pop("exported"), kind
        assert all(figure <= families.tolerance_of(kind) for figure in figures.values()), (kind, figures)


def check_kinds(*arguments: str) -> None:
    from tests.transformer_engine import stand_ins

    stand_ins.install()
    families.check_kinds(*arguments)


@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 1), (2, 1), (1, 2)], ids=["single", "TP2", "PP2"])
def test_both_kinds_of_layers_hold_the_same(tp_size: int, pp_size: int, folders: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = (tp_size, pp_size, str(folders), str(tmp_path))
    run_distributed(check_both_kinds, tp_size * pp_size, *arguments, cpu_emulation=True, timeout_s=290)


def check_both_kinds(tp_size: int, pp_size: int, root: str, save_root: str) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(tp_size, pp_size)
    model_parallel_cuda_manual_seed(1)
    for name in DENSE:
        check_family(Path(root) / name / "hf", Path(save_root) / name)


def check_family(folder: Path, save_dir: Path) -> None:
    from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
    from megatron_mixcpt.inference.engine_model import load_on_this_rank

    hf_model = read_model_folder(folder)
    kinds = {kind: build(hf_model, kind) for kind in ("transformer_engine", "local")}
    theirs, ours = kinds.values()
    assert "TELayerNormColumnParallelLinear" in str(theirs) and "TE" not in str(ours)
    assert layout_of(theirs) == layout_of(ours)
    assert parameters_by_checkpoint_name(theirs, hf_model) == parameters_by_checkpoint_name(ours, hf_model)
    check_plan(theirs, folder)
    for kind, model in kinds.items():
        other = ours if kind == "transformer_engine" else theirs
        load_on_this_rank(model, hf_model)
        families.forget(other)
        save_and_load(model, other, save_dir / kind)
        expected, loaded = (tensors_by_checkpoint_name(one, hf_model) for one in (model, other))
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected), (folder, kind)


def build(hf_model: "HFModel", kind: str) -> torch.nn.Module:  # noqa: F821
    from megatron_mixcpt.inference.engine_model import build_engine_model, transformer_config

    config = transformer_config(hf_model, torch.bfloat16, transformer_impl=kind)
    model = build_engine_model(hf_model, config)
    model.to(torch.bfloat16)  # as the engine's Float16Module does
    return model


def layout_of(model: torch.nn.Module) -> dict[str, tuple]:
    """What a checkpoint holds of this rank: name -> dtype, sizes and places. Without the empty extra states."""
    from megatron.core.dist_checkpointing import ShardedTensor

    return {
        f"{tensor.key} {tensor.global_offset}": (
            tensor.dtype,
            tensor.global_shape,
            tensor.local_shape,
            tensor.axis_fragmentations,
        )
        for tensor in sharded_tensors(model)
        if isinstance(tensor, ShardedTensor)
    }


def sharded_tensors(model: torch.nn.Module) -> list:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import apply_factories

    state = model.sharded_state_dict()
    apply_factories(state)  # of the MLP's two halves
    return list(nested_values(state))


def tensors_by_checkpoint_name(model: torch.nn.Module, hf_model: "HFModel") -> dict[str, torch.Tensor]:  # noqa: F821
    from megatron_mixcpt.conversion.load import checkpoint_name

    numbers, rules = [layer.layer_number for layer in model.decoder.layers], hf_model.rules()
    return {checkpoint_name(name, numbers, rules): tensor for name, tensor in model.named_parameters()}


def parameters_by_checkpoint_name(model: torch.nn.Module, hf_model: "HFModel") -> dict[str, tuple]:  # noqa: F821
    """Sizes, dtype, and how the engine reduces the gradient and counts it in the norm."""
    marks = ("sequence_parallel", "tensor_model_parallel", "partition_dim", "allreduce")
    return {
        name: (tensor.shape, tensor.dtype, [getattr(tensor, mark, None) or None for mark in marks[:2]])
        for name, tensor in tensors_by_checkpoint_name(model, hf_model).items()
    }


def check_plan(model: torch.nn.Module, folder: Path) -> None:
    """The plan counts the bytes of the modules that were made."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_mixcpt.planning.layout import Layout, PlannedRun
    from megatron_mixcpt.planning.shapes import model_shape
    from megatron_mixcpt.planning.weights import stage_parameters

    layout = Layout(
        num_gpus=dist.get_world_size(),
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        seq_length=64,
        bf16=True,
    )
    run = PlannedRun.of(model_shape(str(folder)), layout)
    planned = stage_parameters(run, parallel_state.get_pipeline_model_parallel_rank()) * run.layout.bytes_per_number
    assert planned == sum(parameter.nbytes for parameter in model.parameters()), folder


def save_and_load(model: torch.nn.Module, other: torch.nn.Module, folder: Path) -> None:
    """What ``model`` saves as the engine saves, ``other`` reads as the engine reads."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from megatron_mixcpt.conversion.megatron_for_engine import supply_missing_extra_states

    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save({"model": model.sharded_state_dict()}, str(folder))
    wanted = {"model": other.sharded_state_dict()}
    supply_missing_extra_states(wanted, folder)
    state = dist_checkpointing.load(wanted, str(folder))
    other.load_state_dict(state["model"])

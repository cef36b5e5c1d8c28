"""Grouped experts against the engine's own loop over experts: values, gradients, and checkpoints at other layouts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_mixcpt.testing import run_distributed

EXPERTS, HIDDEN, INNER = 8, 32, 16
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-8}}


@dataclass(frozen=True)
class Layout:
    """Sizes of the groups of two ranks."""

    tensor: int = 1
    expert: int = 1
    expert_tensor: int = 1


LAYOUTS = (
    Layout(),
    Layout(expert=2),
    Layout(tensor=2, expert_tensor=2),
    Layout(tensor=2),
    Layout(tensor=2, expert=2),
)


def test_experts(tmp_path: Path) -> None:
    run_distributed(check_experts, 2, str(tmp_path), cpu_emulation=True)


def check_experts(folder: str) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    written = None
    for number, layout in enumerate(LAYOUTS):
        parallel_state.initialize_model_parallel(
            layout.tensor,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=layout.expert_tensor,
        )
        model_parallel_cuda_manual_seed(1)
        check_values(layout)
        check_marks(layout)
        if written:
            check_reading(layout, written)
        written = write(layout, Path(folder, str(number)))
        check_biases(layout, Path(folder, f"biases-{number}"))
        check_refusals()
        parallel_state.destroy_model_parallel()


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """[e, 2 * inner, hidden], gate above up, and [e, hidden, inner], of all experts."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"linear_fc1": (EXPERTS, 2 * INNER, HIDDEN), "linear_fc2": (EXPERTS, HIDDEN, INNER)}
    return {name: torch.randn(shape, generator=generator).div_(4).to(dtype) for name, shape in shapes.items()}


def part(layout: Layout, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """This rank's part of :func:`weights`."""
    from megatron.core import parallel_state

    whole, tensor = weights(dtype), parallel_state.get_expert_tensor_parallel_rank()
    experts = slice(*(EXPERTS // layout.expert * (parallel_state.get_expert_model_parallel_rank() + i) for i in (0, 1)))
    gate, up = (half.chunk(layout.expert_tensor, 1)[tensor] for half in whole["linear_fc1"][experts].chunk(2, 1))
    return {
        "linear_fc1": torch.cat([gate, up], 1),
        "linear_fc2": whole["linear_fc2"][experts].chunk(layout.expert_tensor, 2)[tensor],
    }


def build(
    kind: str, layout: Layout, dtype: torch.dtype = torch.float32, mlp_bias: bool = False, **overrides: Any
) -> torch.nn.Module:
    """Experts of one layer on this rank, ``grouped`` (ours) or ``sequential`` (the engine's); filled with nan."""
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.models.experts import GroupedExperts
    from megatron_mixcpt.models.options import ModelOptions, attach_options

    config = TransformerConfig(
        **{
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "num_attention_heads": 4,
            "num_moe_experts": EXPERTS,
            "moe_ffn_hidden_size": INNER,
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "add_bias_linear": False,
            "params_dtype": dtype,
            "bf16": dtype == torch.bfloat16,
            "tensor_model_parallel_size": layout.tensor,
            "sequence_parallel": layout.tensor > 1,
            "expert_model_parallel_size": layout.expert,
            "expert_tensor_parallel_size": layout.expert_tensor,
            "perform_initialization": False,
            "moe_grouped_gemm": True,
            **overrides,
        }
    )
    attach_options(config, ModelOptions(mlp_bias=mlp_bias))
    builder = GroupedExperts if kind == "grouped" else LocalSpecProvider().grouped_mlp_modules(True)
    experts = builder(EXPERTS // layout.expert, config, pg_collection=get_default_pg_collection())
    for parameter in experts.parameters():
        parameter.data.fill_(float("nan"))
    return experts


def fill(experts: torch.nn.Module, values: dict[str, Tensor]) -> torch.nn.Module:
    """Put this rank's weights into either kind."""
    for name, value in values.items():
        if hasattr(experts, "local_experts"):
            for expert, matrix in zip(experts.local_experts, value, strict=True):
                getattr(expert, name).weight.data.copy_(matrix)
        else:
            getattr(experts, name).weight.data.copy_(value)
    return experts


def stacked(experts: torch.nn.Module, name: str, *, grad: bool) -> Tensor:
    """A layer's weights or gradients [e, n, k] of either kind."""
    layers = [getattr(expert, name) for expert in getattr(experts, "local_experts", ())]
    values = [layer.weight for layer in layers] or [getattr(experts, name).weight]
    found = [value.grad if grad else value.detach() for value in values]
    return torch.stack(found) if layers else found[0]


def run(experts: torch.nn.Module, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients for rows of which one expert of each rank has none; the same rows on every rank."""
    generator = torch.Generator().manual_seed(9)
    counts = torch.tensor([3, 0, 6, 1, 4, 2, 0, 5][: EXPERTS // layout.expert])
    rows = torch.randn(int(counts.sum()), HIDDEN, generator=generator).to(dtype).requires_grad_()
    probabilities = torch.rand(len(rows), generator=generator).requires_grad_()
    output, bias = experts(rows, counts, probabilities)
    assert bias is None
    (output.float() * torch.randn(output.shape, generator=generator)).sum().backward()
    grads = {name: stacked(experts, name, grad=True) for name in ("linear_fc1", "linear_fc2")}
    return {"output": output.detach(), "rows": rows.grad, "probabilities": probabilities.grad, **grads}


def check_values(layout: Layout) -> None:
    """As the engine's loop, without and with recomputation of the activations; which the engine's loop has not."""
    for dtype in TOLERANCE if layout == Layout() else (torch.float32,):
        expected = run(fill(build("sequential", layout, dtype), part(layout, dtype)), layout, dtype)
        for overrides in ({}, {"recompute_granularity": "selective", "recompute_modules": ["moe_act"]}):
            result = run(fill(build("grouped", layout, dtype, **overrides), part(layout, dtype)), layout, dtype)
            torch.testing.assert_close(result, expected, **TOLERANCE[dtype])
        assert not result["linear_fc1"][1].any() and result["linear_fc1"][0].all()  # the second expert has no rows


def check_marks(layout: Layout) -> None:
    """What decides the groups that gradients are reduced and norms are counted in."""
    sequential, grouped = build("sequential", layout), build("grouped", layout)
    for name in ("linear_fc1", "linear_fc2"):
        expected, result = (vars(getattr(x, name).weight) for x in (sequential.local_experts[0], grouped))
        assert result["allreduce"] is expected["allreduce"] and result["tensor_model_parallel"]
        assert result["partition_dim"] == expected["partition_dim"] + 1  # the first axis is the expert


def sharded(experts: torch.nn.Module) -> dict:
    """As in a model: the layer is an axis of the tensors."""
    return experts.sharded_state_dict("mlp.experts.", ((0, 0, 1),))


def write(layout: Layout, folder: Path) -> Path:
    """Checkpoints of both kinds, which hold the same tensors."""
    from megatron.core import dist_checkpointing

    for kind in ("grouped", "sequential"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        dist_checkpointing.save(sharded(fill(build(kind, layout), part(layout))), str(folder / kind))
    metadata = [dist_checkpointing.load_tensors_metadata(str(folder / kind)) for kind in ("grouped", "sequential")]
    shapes = [{name: tensor.global_shape for name, tensor in tensors.items()} for tensors in metadata]
    assert (
        shapes[0]
        == shapes[1]
        == {
            "mlp.experts.experts.linear_fc1.weight": (1, EXPERTS, 2 * INNER, HIDDEN),
            "mlp.experts.experts.linear_fc2.weight": (1, EXPERTS, HIDDEN, INNER),
        }
    )
    return folder


def check_reading(layout: Layout, folder: Path) -> None:
    """Each kind reads the other's checkpoint, written at another layout."""
    from megatron.core import dist_checkpointing

    from megatron_mixcpt.conversion.megatron_for_engine import supply_missing_extra_states

    for kind, other in (("grouped", "sequential"), ("sequential", "grouped"), ("grouped", "grouped")):
        experts = build(kind, layout)
        wanted = sharded(experts)
        supply_missing_extra_states(wanted, folder / other)  # the engine's linear layers save an empty one, ours none
        state = dist_checkpointing.load(wanted, str(folder / other))
        experts.load_state_dict({name.removeprefix("mlp.experts."): value for name, value in state.items()})
        for name, expected in part(layout).items():
            torch.testing.assert_close(stacked(experts, name, grad=False), expected, rtol=0, atol=0)


def check_biases(layout: Layout, folder: Path) -> None:
    """Values and gradients of experts with biases beside a loop over whole experts, and their way through a checkpoint.

    Added up over the ranks that share an expert, as the dispatcher does, the result has each bias once; the gradient of
    the second layer's is whole on each of them.
    """
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state

    experts = fill(build("grouped", layout, mlp_bias=True, activation_func_clamp_value=0.5), part(layout))
    first, size = EXPERTS // layout.expert * parallel_state.get_expert_model_parallel_rank(), EXPERTS // layout.expert
    biases = [torch.randn(EXPERTS, count, generator=torch.Generator().manual_seed(3)) for count in (2 * INNER, HIDDEN)]
    whole = [tensor[first : first + size].clone().requires_grad_() for tensor in (*weights().values(), *biases)]
    rank, group = parallel_state.get_expert_tensor_parallel_rank(), parallel_state.get_expert_tensor_parallel_group()
    divided = torch.cat([half.chunk(layout.expert_tensor, 1)[rank] for half in whole[2].chunk(2, 1)], 1)
    experts.linear_fc1.bias.data.copy_(divided)
    experts.linear_fc2.bias.data.copy_(whole[3])

    generator = torch.Generator().manual_seed(9)
    counts = torch.tensor([3, 0, 6, 1, 4, 2, 0, 5][:size])
    rows, probabilities = torch.randn(int(counts.sum()), HIDDEN, generator=generator), torch.rand(int(counts.sum()))
    output, _ = experts(rows, counts, probabilities)
    expected = loop_over_experts(rows, counts, probabilities, whole)
    factor = torch.randn(output.shape, generator=generator)
    (output * factor).sum().backward()
    (expected * factor).sum().backward()
    total = output.detach().clone()
    dist.all_reduce(total, group=group)
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-5)
    divided = torch.cat([half.chunk(layout.expert_tensor, 1)[rank] for half in whole[2].grad.chunk(2, 1)], 1)
    torch.testing.assert_close(experts.linear_fc1.bias.grad, divided, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(experts.linear_fc2.bias.grad, whole[3].grad, rtol=1e-5, atol=1e-5)
    assert experts.linear_fc1.bias.tensor_model_parallel
    assert experts.linear_fc2.bias.tensor_model_parallel == (layout.expert_tensor == 1)

    folder.mkdir(exist_ok=True)
    dist_checkpointing.save(sharded(experts), str(folder))
    shapes = {name: item.global_shape for name, item in dist_checkpointing.load_tensors_metadata(str(folder)).items()}
    for name, tensor in zip(("linear_fc1.bias", "linear_fc2.bias"), biases, strict=True):
        assert shapes[f"mlp.experts.experts.{name}"] == (1, *tensor.shape)
        key = f"mlp.experts.experts.{name}"
        read = dist_checkpointing.load_plain_tensors(str(folder))[key]
        torch.testing.assert_close(read[0], tensor, rtol=0, atol=0)


def loop_over_experts(rows: Tensor, counts: Tensor, probabilities: Tensor, tensors: list[Tensor]) -> Tensor:
    """Each expert's clamped MLP over its rows, times the router's weights; of whole experts, in plain operations."""
    parts = []
    for x, weight, *expert in zip(*(x.split(counts.tolist()) for x in (rows, probabilities)), *tensors, strict=True):
        gate, up = (x @ expert[0].T + expert[2]).chunk(2, -1)
        inner = torch.nn.functional.silu(gate.clamp(max=0.5)) * up.clamp(-0.5, 0.5)
        parts.append((inner @ expert[1].T + expert[3]) * weight[:, None])
    return torch.cat(parts)


def check_refusals() -> None:
    from megatron_mixcpt.errors import ConfigError

    with pytest.raises(ConfigError, match="biases"):
        build("grouped", Layout(), add_bias_linear=True, bias_dropout_fusion=False)

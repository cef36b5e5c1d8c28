"""What Transformer Engine's modules compute, written in plain torch, so that the whole product runs on a CPU.

``install()`` replaces the ``forward`` of the modules that the engine builds (parameters, their attributes and the
arguments of the constructors stay Transformer Engine's), the rotary kernel, and the kernels of its optimizer. What a
stand-in needs it takes from the module: its eps, its process group, whether its gamma is centred at zero. Nothing of
this package is used. The formulas are those of Transformer Engine's documentation.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
import transformer_engine.pytorch as te
import transformer_engine_torch as kernels
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.moe import moe_utils
from torch import Tensor
from torch.nn.functional import linear
from transformer_engine.pytorch.attention import rope


def install() -> None:
    """Put the stand-ins in their places, once in a process."""
    te.RMSNorm.forward = _norm
    te.LayerNorm.forward = _norm
    te.LayerNormLinear.forward = _norm_and_linear
    te.Linear.forward = _linear
    te.DotProductAttention.forward = _attention
    rope.FusedRoPEFunc = Rotary
    moe_utils.te_general_gemm = None  # the engine's router then multiplies with torch
    for name, stand_in in {
        "multi_tensor_adam": _adam,
        "multi_tensor_l2norm": _l2norm,
        "multi_tensor_scale": _scale,
        "multi_tensor_scale_tensor": _scale,
    }.items():
        _replace_everywhere(getattr(kernels, name), stand_in)


def _replace_everywhere(original: Any, stand_in: Any) -> None:
    """Where a module holds ``original`` under any name; those that import it later find it in its own module."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, name, stand_in)


# Layers.


def _normalized(x: Tensor, kind: str, gamma: Tensor, beta: Tensor | None, eps: float, zero_centered: bool) -> Tensor:
    """In float32, rounded at the end, as the kernels do."""
    wide, gamma = x.float(), gamma.float() + (1 if zero_centered else 0)
    if kind == "LayerNorm":
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gamma
    return (wide if beta is None else wide + beta.float()).to(x.dtype)


def _norm(self: torch.nn.Module, x: Tensor) -> Tensor:
    kind = "LayerNorm" if isinstance(self, te.LayerNorm) else "RMSNorm"
    return _normalized(x, kind, self.weight, getattr(self, "bias", None), self.eps, self.zero_centered_gamma)


def _norm_and_linear(self: te.LayerNormLinear, x: Tensor, is_first_microbatch: bool | None = None) -> Any:
    norm = (self.layer_norm_weight, self.layer_norm_bias, self.eps, self.zero_centered_gamma)
    return _linear(self, _normalized(x, self.normalization, *norm), is_first_microbatch)


def _linear(self: torch.nn.Module, x: Tensor, is_first_microbatch: bool | None = None) -> Any:
    """Column parallel: the input is gathered or its gradient summed. Row parallel: the output is summed."""
    bias = self.bias if self.use_bias else None
    parallel = self.tp_size > 1
    if parallel and self.parallel_mode == "column":
        gather = (
            gather_from_sequence_parallel_region if self.sequence_parallel else copy_to_tensor_model_parallel_region
        )
        x = gather(x, group=self.tp_group)
    y = linear(x, self.weight)
    if parallel and self.parallel_mode == "row":
        reduce = (
            reduce_scatter_to_sequence_parallel_region
            if self.sequence_parallel
            else reduce_from_tensor_model_parallel_region
        )
        y = reduce(y, group=self.tp_group)
    if bias is not None and self.apply_bias:
        y = y + bias
    return (y, bias) if self.return_bias else y


# Attention.


def _attention(
    self: te.DotProductAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    qkv_format: str | None = None,
    attn_mask_type: str | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_kv: int | None = None,
    **others: Any,
) -> Tensor:
    """[s, b, heads, size] and causal, or [tokens, heads, size] and causal within the documents of ``cu_seqlens``."""
    unknown = {name: value for name, value in others.items() if value is not None and value is not False}
    assert not unknown, f"the stand-in does not know {unknown}"
    assert query.shape[-2] == self.num_attention_heads // self.tp_size
    assert key.shape[-2] == value.shape[-2] == self.num_gqa_groups_per_partition
    scale = self.softmax_scale
    if (qkv_format or self.qkv_format) == "thd":
        assert attn_mask_type == "padding_causal" and self.cp_group is None
        assert cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_kv)
        lengths = cu_seqlens_q.diff()
        assert cu_seqlens_q[0] == 0 and cu_seqlens_q[-1] == len(query) and (lengths > 0).all()
        assert max_seqlen_q == max_seqlen_kv and max_seqlen_q >= int(lengths.max())
        parts = zip(*(tensor.split(lengths.tolist()) for tensor in (query, key, value)), strict=True)
        return torch.cat([_causal(*(x.unsqueeze(1) for x in part), scale) for part in parts]).flatten(1)
    assert attn_mask_type == "causal" and cu_seqlens_q is None
    if self.cp_group is not None and self.cp_group.size() > 1:
        return _context_parallel(query, key, value, scale, self.cp_group)
    return _causal(query, key, value, scale).flatten(2)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, positions: Tensor | None = None) -> Tensor:
    """Query [s, b, np, hn] of these ``positions`` among keys and values [t, b, ng, hn]; result as the query."""
    positions = torch.arange(len(query), device=query.device) if positions is None else positions
    key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], dim=2) for x in (key, value))
    scores = torch.einsum("sbnh,tbnh->bnst", query.float(), key.float()) * scale
    future = torch.arange(len(key), device=query.device) > positions.unsqueeze(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("bnst,tbnh->sbnh", weights, value.float()).to(query.dtype)


def _context_parallel(query: Tensor, key: Tensor, value: Tensor, scale: float, group: dist.ProcessGroup) -> Tensor:
    """Rank r of n holds chunks r and 2 n - 1 - r of 2 n: everyone's keys and values, put in order."""
    size, half = group.size(), len(query) // 2
    chunks = [chunk for rank in range(size) for chunk in (rank, 2 * size - 1 - rank)]
    order = torch.argsort(torch.tensor(chunks))
    whole = []
    for tensor in (key, value):
        # the gradient that comes back is each rank's part of it: the gather's backward pass sums and splits it
        gathered = gather_from_sequence_parallel_region(tensor, tensor_parallel_output_grad=True, group=group)
        whole.append(torch.cat([gathered.split(half)[int(index)] for index in order]))
    rank = group.rank()
    positions = torch.cat([torch.arange(half) + half * chunk for chunk in (rank, 2 * size - 1 - rank)])
    return _causal(query, *whole, scale, positions).flatten(2)


class Rotary:
    """Stands for the autograd function of the fused kernel."""

    @staticmethod
    def apply(
        x: Tensor,
        frequencies: Tensor,
        start_positions: Tensor | None,
        tensor_format: str,
        interleaved: bool,
        cu_seqlens: Tensor | None,
        cp_size: int,
        cp_rank: int,
    ) -> Tensor:
        """Rotate pairs (i, i + half) of the last dimension; documents of a packed row each start at position 0."""
        assert start_positions is None and not interleaved and cp_size == 1
        if tensor_format == "thd":
            pieces = [_rotate(part.unsqueeze(1), frequencies) for part in x.split(cu_seqlens.diff().tolist())]
            return torch.cat(pieces).squeeze(1)
        assert tensor_format == "sbhd"
        return _rotate(x, frequencies)


def _rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """x [s, b, heads, size]; frequencies [at least s, 1, 1, rotated size], in radians."""
    angles = frequencies[: len(x)]
    rotated, rest = x[..., : angles.shape[-1]].float(), x[..., angles.shape[-1] :]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.cat(((rotated * angles.cos() + turned * angles.sin()).to(x.dtype), rest), dim=-1)


# The optimizer's kernels: lists of tensors, changed in place.


def _adam(
    chunk_size: int,
    overflow: Tensor,
    tensors: list[list[Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decoupled: bool,
    bias_correction: bool,
    weight_decay: float,
) -> None:
    """Gradients, parameters and the two moments; a fifth list holds float32 copies of the parameters."""
    assert decoupled and bias_correction
    for gradient, parameter, first, second, *main in zip(*tensors, strict=True):
        target, gradient = (main[0] if main else parameter), gradient.float()
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (second / (1 - beta2**step)).sqrt() + eps
        target.sub_(lr * ((first / (1 - beta1**step)) / denominator + weight_decay * target))
        if main:
            parameter.copy_(target)


def _l2norm(chunk_size: int, overflow: Tensor, tensors: list[list[Tensor]], per_tensor: bool) -> tuple[Tensor, Tensor]:
    norms = torch.stack([tensor.float().norm() for tensor in tensors[0]])
    return norms.norm().reshape(1), norms


def _scale(chunk_size: int, overflow: Tensor, tensors: list[list[Tensor]], factor: float | Tensor) -> None:
    for source, target in zip(*tensors, strict=True):
        target.copy_(source * factor)

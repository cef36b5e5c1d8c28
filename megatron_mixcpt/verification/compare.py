"""Prove a conversion: the same bits on disk, and the same forward pass as transformers, layer by layer.

:func:`compare_bits` needs no model. :func:`compare_forward` runs transformers on rank 0 and the engine's model over the
initialised tensor-, pipeline- and expert-parallel groups, on the same tokens, and finds the first layer that differs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from megatron_mixcpt.conversion.convert import check_checkpoint, read_whole
from megatron_mixcpt.conversion.hf_model_folder import HFModel, read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.inference.engine_model import (
    build_engine_model,
    forward_through_stages,
    load_megatron_weights,
    load_on_this_rank,
    transformer_config,
)


@dataclass(frozen=True)
class Tolerance:
    """What two correct implementations may differ by at one dtype, because they add in another order."""

    hidden: float
    """Largest difference of a layer's output, relative to its largest value."""
    logit: float
    """Largest difference of a logit, relative to the largest logit."""
    kl: float
    """Mean KL divergence over tokens, in nats."""
    top1: float
    """Share of tokens with the same most probable next token."""


# Measured with SmolLM2-135M on 147 tokens: float32 5e-6, 2e-6, 6e-9 and 1.0, bfloat16 7e-2, 2e-2, 2e-3 and 0.97.
TOLERANCES = {
    torch.float32: Tolerance(hidden=1e-4, logit=1e-4, kl=1e-7, top1=0.999),
    torch.bfloat16: Tolerance(hidden=2e-1, logit=1e-1, kl=1e-2, top1=0.95),
}


@dataclass(frozen=True)
class BitComparison:
    """Tensors of a Megatron checkpoint against those of the folder it was converted from."""

    num_equal: int
    cast: list[str]
    """HF names whose dtype differs: not compared bit for bit."""
    different: list[str]


@dataclass(frozen=True)
class ForwardComparison:
    """Two forward passes on the same tokens."""

    layers: list[float]
    """Relative difference of each layer's output, in order."""
    logit: float
    kl: float
    top1: float

    def first_difference(self, tolerance: Tolerance) -> int | None:
        """Index of the first layer that differs by more than ``tolerance.hidden``; None where none does."""
        return next((index for index, value in enumerate(self.layers) if not value <= tolerance.hidden), None)

    def passes(self, tolerance: Tolerance) -> bool:
        """Whether everything is within ``tolerance`` (nan is not)."""
        close = self.logit <= tolerance.logit and self.kl <= tolerance.kl and self.top1 >= tolerance.top1
        return close and self.first_difference(tolerance) is None


def compare_bits(hf_model: HFModel, checkpoint: MegatronCheckpoint) -> BitComparison:
    """Compare every tensor of the folder with the checkpoint's, one at a time."""
    rules = hf_model.rules()
    check_checkpoint(checkpoint, hf_model, rules)
    num_equal, cast, different = 0, [], []
    for rule in rules.values():
        for name, tensor in rule.take_apart(read_whole(checkpoint, rule, hf_model), hf_model.dims).items():
            expected = hf_model.tensors.read(name, index=rule.hf_index)
            if tensor.dtype != expected.dtype:
                cast.append(name)
            elif torch.equal(tensor.contiguous().view(torch.uint8), expected.view(torch.uint8)):
                num_equal += 1
            else:
                different.append(name)
    return BitComparison(num_equal, cast, different)


def compare_forward(
    hf_dir: str | Path,
    tokens: torch.Tensor,
    *,
    load_dir: str | Path | None = None,
    iteration: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> ForwardComparison:
    """Run both models in ``dtype`` on ``tokens`` [s]; every rank must call, and all get the result.

    Args:
        hf_dir: the model folder; transformers runs it on rank 0, which must have the memory for it.
        tokens: token ids.
        load_dir: the Megatron checkpoint to test; None tests reading ``hf_dir`` directly into the engine.
        iteration: which one of ``load_dir``; None is the latest.
        dtype: of weights and computation on both sides.
    """
    hf_model = read_model_folder(hf_dir)
    if hf_model.quantization:
        raise ConfigError(
            f"{hf_dir}: its weights are quantized ({hf_model.quantization}), and transformers would compute with "
            "others than those that are read: convert and export it, and verify the export"
        )
    config = transformer_config(hf_model, dtype, **_exact_layers(dtype))
    model = build_engine_model(hf_model, config).to(dtype).eval()
    if load_dir is None:
        load_on_this_rank(model, hf_model)
    else:
        load_megatron_weights(model, load_dir, iteration)
    outputs: dict[int, torch.Tensor] = {}
    for layer in model.decoder.layers:
        layer.register_forward_hook(_keep(outputs, layer.layer_number - 1))
    logits = forward_through_stages(model, tokens[None])
    expected, expected_logits = _reference(hf_model, tokens, dtype, next(model.parameters()).device)
    differences = {index: _relative(output[:, 0], expected[index]) for index, output in outputs.items()}
    return _gather(differences, _compare_logits(logits, expected_logits), hf_model)


def _exact_layers(dtype: torch.dtype) -> dict[str, Any]:
    """For float32 the layers without Transformer Engine, which multiplies float32 in TF32: 1e-3 off, not 1e-6."""
    return {"transformer_impl": "local"} if dtype == torch.float32 else {}


def _keep(outputs: dict[int, torch.Tensor], index: int):
    def hook(module: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
        outputs[index] = (output[0] if isinstance(output, tuple) else output).detach().float().cpu()

    return hook


@torch.no_grad()
def _reference(
    hf_model: HFModel, tokens: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each layer's output [layers, s, h] and the logits [s, v] by transformers on rank 0, float32, on every rank."""
    arguments, length = hf_model.engine_arguments, len(tokens)
    hidden = torch.empty(arguments["num_layers"], length, arguments["hidden_size"], device=device)
    logits = torch.empty(length, hf_model.vocab_size, device=device)
    if dist.get_rank() == 0:
        model_class = getattr(transformers, hf_model.architecture.name)
        model = model_class.from_pretrained(
            hf_model.folder, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        ).eval()
        outputs: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(_text_model(model).layers):
            layer.register_forward_hook(_keep(outputs, index))
        logits.copy_(model(tokens[None]).logits[0])
        for index, output in outputs.items():
            hidden[index] = output[0]
    dist.broadcast(hidden, 0)
    dist.broadcast(logits, 0)
    return hidden.cpu(), logits.cpu()


def _text_model(model: torch.nn.Module) -> torch.nn.Module:
    """The language model within, which holds the layers."""
    return getattr(model.model, "language_model", model.model)


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def _compare_logits(logits: torch.Tensor | None, expected: torch.Tensor) -> tuple[float, float, float] | None:
    if logits is None:
        return None
    actual = logits[0, :, : expected.shape[1]].float().cpu()
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    top1 = (actual.argmax(-1) == expected.argmax(-1)).float().mean().item()
    return _relative(actual, expected), max(kl, 0.0), top1


def _gather(
    differences: dict[int, float], on_logits: tuple[float, float, float] | None, hf_model: HFModel
) -> ForwardComparison:
    """Join what the ranks found; where several hold a layer or the logits, take the worst."""
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, (differences, on_logits))
    num_layers = hf_model.engine_arguments["num_layers"]
    layers = [max(layers[index] for layers, _ in found if index in layers) for index in range(num_layers)]
    logits, kls, top1s = zip(*(values for _, values in found if values is not None), strict=True)
    return ForwardComparison(layers, max(logits), max(kls), min(top1s))

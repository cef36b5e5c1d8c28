"""A checkpoint of adapters, written by hand as a training run leaves it, and random tensors in it."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_mixcpt.adapters.targets import TARGETS, adapted_modules
from megatron_mixcpt.conversion.base_weights import weights_digest
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.conversion.megatron_layout import Place
from megatron_mixcpt.conversion.megatron_writer import TensorSource, write_release

Adapters = Mapping[str, tuple[Tensor, Tensor]]
RANK, ALPHA = 3, 5.0


def random_adapters(base: Path, targets: tuple[str, ...], rank: int = RANK) -> Adapters:
    """A [rank, in] and B [out, rank] of every module of the targets, all of them random."""
    model, generator = read_model_folder(base), torch.Generator().manual_seed(1)
    rules = model.rules()
    adapters = {}
    for module in adapted_modules(rules, targets):
        rows, columns = rules[f"{module}.weight"].engine_shape(model.dims)
        a, b = (torch.randn(shape, generator=generator) * 0.2 for shape in ((rank, columns), (rows, rank)))
        adapters[module] = (a, b)
    return adapters


def save_checkpoint(
    base: Path, folder: Path, adapters: Adapters, targets: tuple[str, ...] = tuple(TARGETS), **arguments: object
) -> Path:
    """Write ``adapters`` as a checkpoint of a run that started from ``base``; returns its folder."""
    named = {
        f"adapters.{module}.lora_{letter}": tensor
        for module, pair in adapters.items()
        for letter, tensor in zip("ab", pair, strict=True)
    }
    sources = [TensorSource(Place(name), tuple(t.shape), t.dtype, partial(_fill, t)) for name, t in named.items()]
    settings = {
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "lora_target_modules": ",".join(targets),
        "lora_use_rslora": False,
    }
    write_release(folder, sources, settings | arguments)
    source = copy_hf_metadata(base, folder) / "source.json"
    origin = json.loads(source.read_text()) | {"base_weights": weights_digest(read_model_folder(base))}
    source.write_text(json.dumps(origin))
    return folder


def _fill(tensor: Tensor, target: Tensor) -> None:
    target.copy_(tensor)

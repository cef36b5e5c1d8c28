"""The engine's model in this process, with the layers that training has without Transformer Engine."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from benchmarks.gpu.device import DEVICE
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.inference.engine_model import build_engine_model, load_on_this_rank, transformer_config
from megatron_mixcpt.inference.parallel_groups import start_ranks


def build(folder: Path, dtype: torch.dtype) -> GPTModel:
    """The model of a Hugging Face folder, on one rank, its weights loaded."""
    if not dist.is_initialized():
        start_ranks()
    source = read_model_folder(folder)
    model = build_engine_model(source, transformer_config(source, dtype, transformer_impl="local"))
    model = model.to(DEVICE).to(dtype)
    load_on_this_rank(model, source)
    return model


def random_tokens(model_folder: Path, batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids [batch, length] on the device."""
    size = read_model_folder(model_folder).vocab_size
    return torch.randint(1, size, (batch, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def positions(tokens: Tensor) -> Tensor:
    """0, 1, ... in every row."""
    return torch.arange(tokens.size(1), device=tokens.device).expand(tokens.shape)


def hidden_states(model: GPTModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The last hidden states [s, b, h], without the logits that training computes elsewhere."""

    def take(*, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states

    return model(tokens, positions(tokens), mask, output_processor=take)


def document_mask_of(starts: list[int], tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Of documents that start at these positions, the same in every row, as the trainer masks them in ``dtype``."""
    from megatron_mixcpt.training.batch import document_mask

    length = tokens.size(1)
    boundaries = torch.tensor([[*starts, length]] * len(tokens), dtype=torch.int32, device=tokens.device)
    return document_mask(boundaries, length, dtype)

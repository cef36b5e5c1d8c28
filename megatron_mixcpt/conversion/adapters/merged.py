"""The export of adapters with their base model: W + scale * B A in float32, one Hugging Face tensor at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_mixcpt.conversion.adapters.checkpoint import CheckpointAdapters
from megatron_mixcpt.conversion.adapters.modules import WEIGHT, take_b_apart
from megatron_mixcpt.conversion.architectures.rules import Rule
from megatron_mixcpt.conversion.base_weights import KEY, weights_digest
from megatron_mixcpt.conversion.hf_model_folder import HFModel, read_model_folder
from megatron_mixcpt.errors import CheckpointError


@dataclass(frozen=True)
class MergedModel:
    """The source of an export that adds adapters to the weights of the base model."""

    base: HFModel
    adapters: CheckpointAdapters

    def dtype(self, rule: Rule) -> torch.dtype:
        """The dtype of the base model's tensors."""
        return self.base.tensors.entries[next(iter(rule.hf_shapes(self.base.dims)))].dtype

    def described(self) -> dict[str, str | float]:
        """The adapters' settings, for the model card."""
        return self.adapters.described()

    def hf_tensors(self, rule: Rule) -> Mapping[str, Tensor]:
        """The tensors that a rule makes, those with an adapter in float32 and not rounded.

        Of tensors that are stacked, the one of the rule's ``hf_index``.
        """
        module = rule.engine.removesuffix(WEIGHT)
        tensors = {name: self._read(name, rule) for name in rule.hf_shapes(self.base.dims)}
        if module not in self.adapters.rules:
            return tensors
        a, b = self.adapters.read(module)
        scale = self.adapters.settings.scale
        for name, part in take_b_apart(rule, b, self.base.dims).items():
            tensors[name + WEIGHT] = tensors[name + WEIGHT].float().addmm_(part, a, alpha=scale)
        return tensors

    def _read(self, name: str, rule: Rule) -> Tensor:
        shape = rule.hf_shapes(self.base.dims)[name]
        return self.base.tensors.read(name, index=rule.hf_index).view(shape if rule.hf_index is None else shape[1:])


def find_base(origin: Mapping[str, Any], folder: str | Path | None, checkpoint: Path) -> HFModel:
    """The base model of a checkpoint's adapters.

    Args:
        origin: ``source.json`` of the checkpoint.
        folder: ``--hf-reference``.
        checkpoint: the checkpoint's folder, for errors.

    Raises:
        CheckpointError: no folder is named, or its weights are others than those that the adapters were trained beside.
    """
    if folder is None:
        raise CheckpointError(
            f"{checkpoint} holds adapters of {origin.get('base_model')}: give that model's folder as --hf-reference to "
            "merge them into it, or --adapter to export them alone"
        )
    check_base(origin, model := read_model_folder(folder), checkpoint)
    return model


def check_base(origin: Mapping[str, Any], model: HFModel, checkpoint: Path) -> None:
    """Raise CheckpointError where a model's weights are not those that a checkpoint's adapters were trained beside."""
    if KEY not in origin:
        raise CheckpointError(
            f"{checkpoint} holds adapters, and no hf/source.json with the digest of the weights that they belong to: "
            "copy the checkpoint again, with its hf/ folder"
        )
    if weights_digest(model) != origin[KEY]:
        raise CheckpointError(
            f"--hf-reference {model.folder} is not {origin.get('base_model')}, beside which the adapters of "
            f"{checkpoint} were trained: its weights are others"
        )

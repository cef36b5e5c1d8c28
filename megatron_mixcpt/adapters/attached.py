"""All adapters of one pipeline stage, beside the frozen stage: attached with hooks, switched off, saved and loaded.

Nothing of the stage changes but that its weights are frozen: neither its modules' names nor its checkpoints.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.utils import make_sharded_tensor_for_checkpoint, make_tp_sharded_tensor_for_checkpoint
from torch import Tensor

from megatron_mixcpt.adapters.low_rank import LowRank
from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.adapters.targets import adapted_modules, adapter_keys, side_of
from megatron_mixcpt.errors import ConfigError


class Adapters(torch.nn.Module):
    """The adapters of a stage; the stage is frozen, and its linear layers add what their adapters give.

    Args:
        stage: what they are attached to. **Changed**: its parameters need no gradient any more, the linear layers have
            forward hooks, and the embedding's output needs a gradient, without which the engine's recomputation, which
            is reentrant, would give the layers none: all gradients would be zero without an error.
        settings: which modules get one, and of what rank.
        groups: this rank's process groups.

    Raises:
        ConfigError: the stage has no such module.
    """

    def __init__(self, stage: GPTModel, settings: LoRASettings, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self._groups, self._is_on = groups, True
        self._gated = stage.config.gated_linear_unit
        stage.requires_grad_(False)
        self._adapters = torch.nn.ModuleDict()
        for name, layer in _linear_layers(stage, settings):
            adapter = LowRank(
                layer.weight,
                side_of(name),
                settings,
                groups.tp,
                sequence_parallel=stage.config.sequence_parallel,
            )
            self._adapters[name.replace(".", "/")] = adapter  # names of modules have no dots
            layer.register_forward_hook(self._adding(adapter))
        if not self._adapters:
            raise ConfigError(
                f"--lora-target-modules {settings.lora_target_modules}: a pipeline stage has none of them; choose "
                "modules that every stage has, or fewer stages"
            )
        if stage.pre_process:
            stage.embedding.register_forward_hook(_needing_gradient)

    def _adding(self, adapter: LowRank) -> Callable[..., tuple[Tensor, Tensor | None] | None]:
        """The hook of a layer of the engine, which returns its output and a bias that is still to be added."""

        def add(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]) -> Any:
            return (torch.add(output[0], adapter(inputs[0]), alpha=adapter.scale), *output[1:]) if self._is_on else None

        return add

    @contextmanager
    def off(self) -> Iterator[None]:
        """The stage as it was before; within, it is the base model."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def items(self) -> Iterator[tuple[str, LowRank]]:
        """Each module's name in a checkpoint, and its adapter."""
        return ((name.replace("/", "."), adapter) for name, adapter in self._adapters.items())

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw A as PEFT does, uniform within 1 / sqrt(in), and let B be zero, in place: the same at any layout."""
        for name, adapter in self.items():
            parts, part = (1, 0) if adapter.is_column else (adapter.tp_group.size(), adapter.tp_group.rank())
            rank, columns = adapter.lora_a.shape
            bound = 1.0 / math.sqrt(columns * parts)
            whole = torch.empty(rank, columns * parts, device="cpu", dtype=torch.float32)
            whole.uniform_(-bound, bound, generator=_generator(seed, name))
            adapter.lora_a.copy_(whole.chunk(parts, dim=1)[part])
            adapter.lora_b.zero_()

    @torch.no_grad()
    def fill(self, weights: Callable[[str, int, int], tuple[Tensor, Tensor]]) -> None:
        """Fill all adapters, in place; ``weights`` gives A and B of an engine's weight on rank r of n tensor ranks."""
        for name, adapter in self.items():
            a, b = weights(f"{name}.weight", adapter.tp_group.rank(), adapter.tp_group.size())
            adapter.lora_a.copy_(a)
            adapter.lora_b.copy_(b)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> Any:
        """As the engine saves them: a tensor for each A and B of the whole model, under ``targets.adapter_keys``."""
        state: ShardedStateDict = {}
        for name, adapter in self.items():
            local = f"{prefix}_adapters.{name.replace('.', '/')}"
            key_a, key_b = adapter_keys(name)
            state[f"{local}.lora_a"] = self._sharded(adapter.lora_a, key_a, None if adapter.is_column else 1)
            sharded_b = self._sharded(adapter.lora_b, key_b, 0 if adapter.is_column else None)
            if self._gated and name.endswith(".linear_fc1"):
                # A rank has its rows of the gate above its rows of the other half, the whole tensor all of the gate.
                sharded_b = apply_swiglu_sharded_factory(sharded_b, ())
            state[f"{local}.lora_b"] = sharded_b
        return state

    def _sharded(self, parameter: Tensor, key: str, divided: int | None) -> Any:
        groups = {"tp_group": self._groups.tp, "dp_cp_group": self._groups.dp_cp}
        if divided is None:
            return make_sharded_tensor_for_checkpoint(parameter, key, **groups)
        return make_tp_sharded_tensor_for_checkpoint(parameter, key, divided, **groups)


def _linear_layers(stage: GPTModel, settings: LoRASettings) -> Iterator[tuple[str, torch.nn.Module]]:
    """The layers that get an adapter, with their names in a checkpoint."""
    numbers = [layer.layer_number - 1 for layer in stage.decoder.layers]
    modules = dict(stage.named_modules())
    for name in adapted_modules((name for name, _ in stage.named_parameters()), settings.targets):
        _, _, index, rest = name.split(".", 3)
        yield f"decoder.layers.{numbers[int(index)]}.{rest}", modules[name]


def _needing_gradient(_: torch.nn.Module, __: Any, embeddings: Tensor) -> Tensor:
    return embeddings.requires_grad_() if torch.is_grad_enabled() else embeddings


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8]) >> 1)

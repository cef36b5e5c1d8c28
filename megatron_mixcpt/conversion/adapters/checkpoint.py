"""The adapters in a checkpoint of the engine: all of the model that a training with adapters saves."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.adapters.targets import KEY, adapted_modules, adapter_keys
from megatron_mixcpt.conversion.adapters.modules import WEIGHT
from megatron_mixcpt.conversion.architectures.rules import Rule
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan
from megatron_mixcpt.conversion.megatron_layout import Place
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError

_READ = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_use_rslora")
_SHOWN = 3


@dataclass(frozen=True)
class CheckpointAdapters:
    """Adapters of one saved iteration, to be read one by one."""

    checkpoint: MegatronCheckpoint
    settings: LoRASettings
    rules: Mapping[str, Rule]
    """The rule of the weight beside which each adapter stands, by the module's name."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that they are saved in."""
        (first, _), tensors = adapter_keys(next(iter(self.rules))), self.checkpoint.model_tensors()
        return tensors[first][1]

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] of a module, the whole of both, float32."""
        a, b = (self.checkpoint.read(Place(key)).float() for key in adapter_keys(module))
        return a, b

    def described(self) -> dict[str, str | float]:
        """What a model card says of them."""
        named = {"LoRA rank": self.settings.lora_rank or 0, "LoRA alpha": self.settings.lora_alpha}
        scaling = {"LoRA scaling": "alpha / sqrt(rank) (rsLoRA)"} if self.settings.lora_use_rslora else {}
        return {**named, **scaling, "LoRA target modules (the engine's names)": ", ".join(self.settings.targets)}


def holds_adapters(checkpoint: MegatronCheckpoint) -> bool:
    """Whether a checkpoint holds adapters in the place of a model."""
    return any(key.startswith(KEY) for key in checkpoint.model_tensors())


def refuse_adapters(checkpoint: MegatronCheckpoint) -> None:
    """Raise CheckpointError where a checkpoint that is opened as a model holds adapters."""
    if holds_adapters(checkpoint):
        folder = checkpoint.folder.parent
        raise CheckpointError(
            f"{folder} holds adapters, not a model: export it first with tools/convert_to_hf.py --load {folder} "
            "--save DIR --hf-reference BASE and give --hf-model DIR"
        )


def open_adapters(checkpoint: MegatronCheckpoint, plan: ModelPlan) -> CheckpointAdapters:
    """The adapters of a checkpoint, checked by its index; no tensor is read.

    Args:
        checkpoint: one that :func:`holds_adapters`.
        plan: the model that they belong to.

    Raises:
        CheckpointError: the run's arguments do not say what they are, or they are not those of the model's modules,
            with their shapes.
    """
    settings = _settings_of(checkpoint)
    rules = plan.rules()
    found = CheckpointAdapters(
        checkpoint, settings, {module: rules[module + WEIGHT] for module in adapted_modules(rules, settings.targets)}
    )
    _check(found, plan)
    return found


def _settings_of(checkpoint: MegatronCheckpoint) -> LoRASettings:
    arguments = checkpoint.arguments()
    if not isinstance(arguments.get("lora_rank"), int):
        raise CheckpointError(
            f"{checkpoint.folder} holds adapters, and its arguments have no lora_rank: save it again with this project"
        )
    return LoRASettings(**{name: arguments[name] for name in _READ if name in arguments})


def _check(adapters: CheckpointAdapters, plan: ModelPlan) -> None:
    """Raise CheckpointError that lists what is missing and unexpected, or names the first shape that differs."""
    folder, rank = adapters.checkpoint.folder, adapters.settings.lora_rank or 0
    present, expected = adapters.checkpoint.model_tensors(), dict[str, tuple[int, ...]]()
    for module, rule in adapters.rules.items():
        rows, columns = rule.engine_shape(plan.dims)
        expected |= zip(adapter_keys(module), ((rank, columns), (rows, rank)), strict=True)
    missing, unexpected = sorted(expected.keys() - present.keys()), sorted(present.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: its adapters are not those of --lora-target-modules {adapters.settings.lora_target_modules} "
            f"beside {plan.folder}: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    for key, shape in expected.items():
        if (saved := tuple(present[key][0])) != shape:
            raise CheckpointError(
                f"{folder}: {key} has shape {saved}, --lora-rank {rank} and {plan.folder} imply {shape}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"

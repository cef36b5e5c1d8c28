"""From flags to the adapters of a run, checked against the model and the checkpoint before anything starts."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.adapters.targets import TARGETS, adapted_modules
from megatron_mixcpt.conversion.adapters.checkpoint import holds_adapters
from megatron_mixcpt.conversion.adapters.peft_folder import read_peft_folder
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError, ConfigError

_REFUSED = {
    "fp8": ("--fp8-format", "the teacher would run in the student's 8 bits"),
    "pretrained_checkpoint": (
        "--pretrained-checkpoint",
        "adapters belong to the weights of a Hugging Face folder: export the checkpoint with tools/convert_to_hf.py "
        "and give that as --hf-model",
    ),
    "moe_shared_expert_overlap": (
        "--moe-shared-expert-overlap",
        "the exchange of the shared expert's linear layers is then apart from them",
    ),
}


def resolved_lora(lora: LoRASettings, plan: ModelPlan) -> LoRASettings | None:
    """The settings of a run's adapters, those of the folder that it goes on from; None: it trains none."""
    if lora.lora_adapter is None:
        return lora if lora.is_given else None
    folder = read_peft_folder(Path(lora.lora_adapter), plan)
    return LoRASettings(
        lora_rank=folder.rank,
        lora_alpha=folder.alpha,
        lora_dropout=folder.dropout,
        lora_use_rslora=folder.use_rslora,
        lora_target_modules=folder.target_modules,
    )


def check_lora(lora: LoRASettings, plan: ModelPlan, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for what cannot be trained with adapters.

    Args:
        lora: from :func:`resolved_lora`.
        plan: the model.
        settings: the engine's arguments by name.
    """
    for name, (flag, reason) in _REFUSED.items():
        if settings.get(name):
            raise ConfigError(f"{flag} cannot be used with --lora-rank: {reason}; remove it")
    there = targets_of(plan, TARGETS)
    if missing := lora.missing_from(there):
        raise ConfigError(
            f"--lora-target-modules {lora.lora_target_modules}: {plan.folder} has no {missing} outside of its routed "
            f"experts; choose from {','.join(there)}"
        )


def targets_of(plan: ModelPlan, targets: Iterable[str]) -> list[str]:
    """Those of the targets that the model has."""
    weights = plan.rules()
    return [name for name in targets if adapted_modules(weights, [name])]


def check_adapters_in(checkpoint: MegatronCheckpoint | None, *, trains_adapters: bool) -> None:
    """Raise CheckpointError where a run with adapters would resume from a model, or one without from adapters."""
    if checkpoint is None or trains_adapters == holds_adapters(checkpoint):
        return
    if trains_adapters:
        raise CheckpointError(
            f"{checkpoint.folder} holds a whole model, and --lora-rank trains adapters: choose another folder"
        )
    raise CheckpointError(f"{checkpoint.folder} holds adapters: add the --lora-rank that it had, or choose another")


def tenfold(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Learning rates for adapters: ten times those of full training."""
    rates = {name: float(f"{10 * defaults[name]:.6g}") for name in ("lr", "min_lr") if name in defaults}
    return dict(defaults) | rates


def as_settings(lora: LoRASettings) -> dict[str, Any]:
    """The engine's arguments that a checkpoint keeps of it."""
    return dataclasses.asdict(lora)

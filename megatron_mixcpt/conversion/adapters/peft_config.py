"""``adapter_config.json`` of a PEFT folder: how we write it, and what of it we can express.

PEFT has many kinds of adapters under one name, and some change the base model's weights. What is not listed here and
is switched on is refused, so that a kind that is newer than this file is not taken for a plain one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mixcpt.conversion.tensor_files.reader import read_json
from megatron_mixcpt.errors import CheckpointError, ConfigError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before the names of the base model's modules in the files."""

# Fields that are read, or that say how adapters are trained or where they lie, not what they compute.
_UNDERSTOOD = frozenset(
    "r lora_alpha lora_dropout use_rslora bias peft_type task_type rank_pattern alpha_pattern init_lora_weights "
    "target_modules exclude_modules layers_to_transform layers_pattern base_model_name_or_path revision auto_mapping "
    "inference_mode peft_version megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config "
    "qalora_group_size ensure_weight_tying runtime_config".split()
)
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Of ``init_lora_weights``: those that leave the base model's weights as they are."""


@dataclass(frozen=True)
class PeftConfig:
    """What a plain LoRA adapter is."""

    rank: int
    alpha: float
    dropout: float
    use_rslora: bool


def config_values(config: PeftConfig, targets: Sequence[str], base: str | None) -> dict[str, Any]:
    """The contents of ``adapter_config.json``.

    Args:
        targets: ``target_modules``.
        base: name or folder of the base model.
    """
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.use_rslora,
    }


def read_peft_config(folder: Path) -> PeftConfig:
    """Read ``adapter_config.json`` of a folder.

    Raises:
        CheckpointError: it is missing, or not readable.
        ConfigError: an adapter that is not plain LoRA.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}: give a folder that PEFT saved")
    values = read_json(path)
    _refuse_other_kinds(path, values)
    rank, alpha, dropout = values.get("r"), values.get("lora_alpha"), values.get("lora_dropout", 0.0)
    if type(rank) is not int or rank < 1:
        raise ConfigError(f"{path}: r {rank!r} is not a rank, which is a number greater than 0")
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ConfigError(f"{path}: lora_alpha {alpha!r} must be a number greater than 0")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"{path}: lora_dropout {dropout!r} must be at least 0 and below 1, a probability")
    for field, value in (("rank_pattern", rank), ("alpha_pattern", alpha)):
        if any(other != value for other in (values.get(field) or {}).values()):
            raise ConfigError(f"{path}: {field} {values[field]!r}: all modules must have one rank and one alpha")
    return PeftConfig(rank, float(alpha), float(dropout), bool(values.get("use_rslora")))


def _refuse_other_kinds(path: Path, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for what is not W + scale * B A beside frozen weights."""
    kind, task, bias = values.get("peft_type"), values.get("task_type"), values.get("bias", "none")
    if kind != "LORA":
        raise ConfigError(f"{path}: peft_type {kind!r} is not supported: only LORA is")
    if task not in (None, "CAUSAL_LM"):
        raise ConfigError(f"{path}: task_type {task!r} is not supported: only CAUSAL_LM is")
    if bias != "none":
        raise ConfigError(f"{path}: bias {bias!r} trains biases of the base model, which stays frozen here")
    if (start := values.get("init_lora_weights", True)) not in _PLAIN_STARTS:
        raise ConfigError(
            f"{path}: init_lora_weights {start!r} changes the base model's weights: convert the adapter with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    for field, value in values.items():
        if field not in _UNDERSTOOD and value:
            raise ConfigError(f"{path}: {field} {value!r} is not supported: only plain LoRA adapters are")

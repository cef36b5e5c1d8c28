"""The files of an exported model folder beside its weights: config.json, model card, and where they come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_mixcpt.conversion.hf_metadata import FOLDER_NAME, SOURCE_NAME, metadata_digest
from megatron_mixcpt.conversion.hf_model_folder import CONFIG_NAME, ModelPlan
from megatron_mixcpt.conversion.model_card import model_card
from megatron_mixcpt.conversion.safetensors_reader import read_json
from megatron_mixcpt.errors import CheckpointError


def metadata_folder(load_dir: Path, hf_reference: str | Path | None) -> Path:
    """The folder to export with: the checkpoint's own, or the reference that stands in for it; never both."""
    own = load_dir / FOLDER_NAME
    if own.is_dir() and hf_reference is not None:
        raise CheckpointError(f"{own} has the model's config and tokenizer: leave out --hf-reference {hf_reference}")
    if not own.is_dir() and hf_reference is None:
        raise CheckpointError(
            f"{load_dir} has no {FOLDER_NAME}/ folder with the model's config and tokenizer: "
            "name the model folder it was trained from with --hf-reference"
        )
    return own if hf_reference is None else Path(hf_reference)


def write_card(metadata: Path, folder: Path, arguments: Mapping[str, Any], figures: Mapping[str, float]) -> None:
    """Write ``README.md`` into ``folder``, from the metadata's origin, the run's arguments and what it logged."""
    origin = read_json(metadata / SOURCE_NAME) if (metadata / SOURCE_NAME).exists() else {}
    origin = origin or {"base_model": metadata.resolve().name, "digest": metadata_digest(metadata)}
    (folder / "README.md").write_text(model_card(origin, arguments, figures), encoding="utf-8")


def write_config(plan: ModelPlan, folder: Path, dtypes: set[torch.dtype], arguments: Mapping[str, Any]) -> None:
    """Say in config.json the dtype and the sequence length of training; untouched where both are right already.

    The dtype keeps the key it had there. A length is raised to what training used, never lowered.
    """
    name = str(next(iter(dtypes)) if len(dtypes) == 1 else torch.float32).removeprefix("torch.")
    key = "dtype" if "dtype" in plan.config else "torch_dtype"
    length = max(plan.config["max_position_embeddings"], arguments.get("seq_length") or 0)
    config = {**plan.config, key: name, "max_position_embeddings": length}
    if config != plan.config:
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")

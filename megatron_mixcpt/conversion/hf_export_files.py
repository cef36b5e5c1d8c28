"""The files of an exported model folder other than its weights: config.json and the model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_mixcpt.conversion import base_weights, carried
from megatron_mixcpt.conversion.architectures.text_tower import TEXT_CONFIG
from megatron_mixcpt.conversion.context_length import with_positions
from megatron_mixcpt.conversion.hf_metadata import FOLDER_NAME, SOURCE_NAME, metadata_digest
from megatron_mixcpt.conversion.hf_model_folder import CONFIG_NAME, ModelPlan
from megatron_mixcpt.conversion.model_card import model_card
from megatron_mixcpt.conversion.tensor_files.reader import read_json
from megatron_mixcpt.data.tokens.end_of_document import configured_eos
from megatron_mixcpt.errors import CheckpointError


def metadata_folder(load_dir: Path, hf_reference: str | Path | None) -> Path:
    """The folder with the config and tokenizer to export: the checkpoint's, or the reference that stands in for it.

    A checkpoint that has them takes a reference for the tensors alone that it lacks: those that are not trained
    (``carried.py``), or all, where it holds adapters (``base_weights.py``).
    Raises CheckpointError where both are there and nothing is lacking, or neither.
    """
    own = load_dir / FOLDER_NAME
    if own.is_dir() and hf_reference is not None and not {carried.KEY, base_weights.KEY} & origin_of(own).keys():
        raise CheckpointError(
            f"{own} already has the model's config and tokenizer: remove --hf-reference {hf_reference}"
        )
    if not own.is_dir() and hf_reference is None:
        raise CheckpointError(
            f"{load_dir} has no {FOLDER_NAME}/ folder with the model's config and tokenizer: "
            "give the model folder that it was trained from as --hf-reference"
        )
    return own if own.is_dir() else Path(hf_reference or "")


def origin_of(metadata: Path) -> dict[str, Any]:
    """``source.json`` of a checkpoint's metadata; empty for a model folder."""
    return read_json(metadata / SOURCE_NAME) if (metadata / SOURCE_NAME).exists() else {}


def write_card(
    metadata: Path,
    folder: Path,
    arguments: Mapping[str, Any],
    figures: Mapping[str, str | float],
    library: str = "transformers",
) -> None:
    """Write ``README.md`` into ``folder``, from the metadata's origin, the run's arguments and what it logged."""
    origin = origin_of(metadata) or {"base_model": metadata.resolve().name, "digest": metadata_digest(metadata)}
    (folder / "README.md").write_text(model_card(origin, arguments, figures, library), encoding="utf-8")


def write_config(plan: ModelPlan, folder: Path, dtypes: set[torch.dtype], arguments: Mapping[str, Any]) -> None:
    """Write the dtype and the sequence length of training into config.json, unless it has them already.

    A quantization of the base model's weights is taken out.

    The dtype is written under the key that it has there, and in ``text_config`` where that has one. A length is raised
    to what training used, never lowered, and the rotary embedding stays what it was (``context_length.py``).
    """
    name = str(next(iter(dtypes)) if len(dtypes) == 1 else torch.float32).removeprefix("torch.")
    before = plan.document(plan.config)
    key = "dtype" if "dtype" in before else "torch_dtype"
    config = {**plan.document(with_positions(plan, arguments.get("seq_length") or 0)), key: name}
    for settings in (config, config.get(TEXT_CONFIG, {})):
        settings.pop("quantization_config", None)  # the weights are not quantized any more
    if isinstance(text := config.get(TEXT_CONFIG), dict):
        config[TEXT_CONFIG] = {**text, **{key: name for key in ("dtype", "torch_dtype") if text.get(key) is not None}}
    if config != before:
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def warning_of_end(folder: Path, arguments: Mapping[str, Any]) -> str | None:
    """Where the documents of continual pre-training end with another token than generation stops at.

    Args:
        folder: the exported config's.
        arguments: of the training run.
    """
    end, stops = arguments.get("null_tokenizer_eod_id"), configured_eos(folder)
    if not arguments.get("mixture") or end is None or not stops or any(end in ids for ids in stops.values()):
        return None
    named = ", ".join(f"{name} {' and '.join(map(str, ids))}" for name, ids in stops.items())
    return (
        f"the documents of the training ended with token {end}, at which generation does not stop (eos_token_id of "
        f"{named}): add it there if the model is to end texts"
    )

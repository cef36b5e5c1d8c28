"""Hugging Face folder to Megatron checkpoint and back, on disk, tensor by tensor.

Both directions plan from headers first (names, shapes and dtypes on both sides must match exactly), then stream: memory
is bounded by the largest group of tensors that a rule joins. Under ``torchrun`` processes share the tensors. Outputs
are written aside and renamed when they are whole.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from megatron_mixcpt.conversion.hf_metadata import (
    FOLDER_NAME,
    RECORD_NAME,
    SOURCE_NAME,
    copy_files,
    copy_hf_metadata,
    metadata_digest,
)
from megatron_mixcpt.conversion.megatron_layout import Place, place_of
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.conversion.megatron_writer import TensorSource, write_release
from megatron_mixcpt.conversion.model_card import model_card
from megatron_mixcpt.conversion.model_folder import (
    CONFIG_NAME,
    EMBEDDING,
    OUTPUT_LAYER,
    HFModel,
    ModelPlan,
    read_config,
    read_model_folder,
)
from megatron_mixcpt.conversion.rules import Rule
from megatron_mixcpt.conversion.safetensors_folder import read_json
from megatron_mixcpt.conversion.safetensors_writer import MAX_SHARD_BYTES, SafetensorsWriter, TensorShape
from megatron_mixcpt.errors import CheckpointError

PADDED = (EMBEDDING, OUTPUT_LAYER)


@dataclass(frozen=True)
class Summary:
    """What a conversion did, for the tools to print."""

    folder: Path
    num_tensors: int
    num_bytes: int


def convert_from_hf(hf_dir: str | Path, save_dir: str | Path) -> Summary:
    """Write a model folder as a Megatron checkpoint that any tensor- and pipeline-parallel layout loads.

    Weights keep their dtype bit for bit. The checkpoint is a release: ``--pretrained-checkpoint`` and ``--load`` start
    at iteration 0 from it.

    Raises:
        CheckpointError: the folder is damaged, or ``save_dir`` exists.
        ConfigError: the engine cannot express the model.
    """
    hf_model, target = read_model_folder(hf_dir), Path(save_dir)
    sources = [_source(hf_model, rule) for rule in hf_model.rules().values()]
    parallel = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    with _written_aside(target) as aside:
        write_release(aside, sources, {**hf_model.engine_arguments, **parallel})
        if _rank() == 0:
            copy_hf_metadata(hf_model.folder, aside, hf_model)
    return Summary(target, len(sources), sum(source.num_bytes for source in sources))


def _source(hf_model: HFModel, rule: Rule) -> TensorSource:
    dims = hf_model.dims
    dtype = hf_model.tensors.entries[next(iter(rule.hf_shapes(dims)))].dtype
    return TensorSource(place_in(rule, hf_model), rule.engine_shape(dims), dtype, partial(_fill, hf_model, rule))


def place_in(rule: Rule, plan: ModelPlan) -> Place:
    """Where a rule's tensor stands in a checkpoint of this model."""
    return place_of(rule.engine, plan.engine_arguments["num_layers"], plan.engine_arguments["num_experts"] or 0)


def _fill(hf_model: HFModel, rule: Rule, target: torch.Tensor) -> None:
    row = 0
    for block in rule.blocks(hf_model.dims):
        hf_model.tensors.read_into(target[row : row + block.num_rows], block.name, block.rows)
        row += block.num_rows


def convert_to_hf(
    load_dir: str | Path,
    save_dir: str | Path,
    *,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    hf_reference: str | Path | None = None,
) -> Summary:
    """Export a Megatron checkpoint, saved at any layout, as a model folder that transformers loads.

    Args:
        load_dir: a checkpoint folder with its ``hf/`` metadata.
        save_dir: the folder to make; must not exist.
        iteration: None exports the one that the tracker file names.
        dtype: None keeps the checkpoint's.
        max_shard_bytes: largest file; the default is that of transformers.
        hf_reference: a model folder whose config and tokenizer stand in for a checkpoint's missing ``hf/``.

    Raises:
        CheckpointError: a checkpoint that is missing, damaged, of another model, or a ``save_dir`` that exists.
    """
    checkpoint, target = MegatronCheckpoint(load_dir, iteration), Path(save_dir)
    metadata = _metadata_folder(Path(load_dir), hf_reference)
    plan = read_config(metadata)
    rules = plan.rules()
    dtypes = check_checkpoint(checkpoint, plan, rules)
    tensors = {
        name: TensorShape(shape, dtype or dtypes[rule.engine])
        for rule in rules.values()
        for name, shape in rule.hf_shapes(plan.dims).items()
    }
    with _written_aside(target) as aside:
        writer = SafetensorsWriter(aside, tensors, max_shard_bytes)
        if _rank() == 0:
            writer.create()
        _barrier()
        _write_tensors(checkpoint, plan, list(rules.values()), writer)
        if _rank() == 0:
            copy_files(metadata, aside)
            _write_config(plan, aside, {tensor.dtype for tensor in tensors.values()}, checkpoint.arguments())
            _write_card(metadata, aside, checkpoint.arguments())
    return Summary(target, len(tensors), sum(tensor.num_bytes for tensor in tensors.values()))


def _write_tensors(
    checkpoint: MegatronCheckpoint, plan: ModelPlan, rules: list[Rule], writer: SafetensorsWriter
) -> None:
    for rule in tqdm(
        rules[_rank() :: _world_size()], desc="export", unit="tensor", disable=None if _rank() == 0 else True
    ):
        tensor = checkpoint.read(place_in(rule, plan))
        for name, part in rule.take_apart(tensor, plan.dims).items():
            writer.write(name, part.to(writer.tensors[name].dtype))


def check_checkpoint(
    checkpoint: MegatronCheckpoint, plan: ModelPlan, rules: Mapping[str, Rule]
) -> dict[str, torch.dtype]:
    """Every tensor of the model is in the checkpoint, no other is, and shapes agree; returns dtypes by engine name.

    Raises:
        CheckpointError: naming what is missing and what is unexpected, or the first shape that differs.
    """
    present = checkpoint.model_tensors()
    expected = {name: place_in(rule, plan) for name, rule in rules.items()}
    keys = {place.key for place in expected.values()}
    missing, unexpected = sorted(keys - set(present)), sorted(set(present) - keys)
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.folder} does not match {plan.folder / CONFIG_NAME}: missing {missing}; "
            f"unexpected {unexpected}"
        )
    for name, place in expected.items():
        shape, wanted = tuple(present[place.key][0]), (*place.sizes, *rules[name].engine_shape(plan.dims))
        padded = name in PADDED and shape[0] >= wanted[0] and shape[1:] == wanted[1:]
        if shape != wanted and not padded:
            raise CheckpointError(f"{checkpoint.folder}: {place.key} has shape {shape}, {CONFIG_NAME} implies {wanted}")
    return {name: present[place.key][1] for name, place in expected.items()}


def _metadata_folder(load_dir: Path, hf_reference: str | Path | None) -> Path:
    own = load_dir / FOLDER_NAME
    if own.is_dir() and hf_reference is not None:
        raise CheckpointError(f"{own} has the model's config and tokenizer: leave out --hf-reference {hf_reference}")
    if not own.is_dir() and hf_reference is None:
        raise CheckpointError(
            f"{load_dir} has no {FOLDER_NAME}/ folder with the model's config and tokenizer: "
            "name the model folder it was trained from with --hf-reference"
        )
    return own if hf_reference is None else Path(hf_reference)


def _write_card(metadata: Path, folder: Path, arguments: Mapping[str, Any]) -> None:
    origin, record = (
        read_json(metadata / name) if (metadata / name).exists() else {} for name in (SOURCE_NAME, RECORD_NAME)
    )
    origin = origin or {"base_model": metadata.resolve().name, "digest": metadata_digest(metadata)}
    (folder / "README.md").write_text(model_card(origin, arguments, record), encoding="utf-8")


def _write_config(plan: ModelPlan, folder: Path, dtypes: set[torch.dtype], arguments: Mapping[str, Any]) -> None:
    """Say in config.json the dtype and the sequence length of training; untouched where both are right already.

    The dtype keeps the key it had there. A length is raised to what training used, never lowered.
    """
    name = str(next(iter(dtypes)) if len(dtypes) == 1 else torch.float32).removeprefix("torch.")
    key = "dtype" if "dtype" in plan.config else "torch_dtype"
    length = max(plan.config["max_position_embeddings"], arguments.get("seq_length") or 0)
    config = {**plan.config, key: name, "max_position_embeddings": length}
    if config != plan.config:
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def process_group_of_torchrun() -> Iterator[int]:
    """A gloo process group where ``torchrun`` started this process, none where it did not; yields the rank."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
    try:
        yield _rank()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write into, renamed to it at the end and removed on failure."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already: give a --save folder that does not")
    aside = target.with_name(f".{target.name}.partial")
    if _rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    _barrier()
    try:
        yield aside
        _barrier()
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if _rank() == 0:
        aside.rename(target)
    _barrier()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()

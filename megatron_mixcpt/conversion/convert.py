"""Hugging Face folder to Megatron checkpoint and back, on disk, tensor by tensor.

Both directions plan from headers first (names, shapes and dtypes on both sides must match exactly), then stream: memory
is bounded by the largest group of tensors that a rule joins. Outputs are either complete or absent. Under ``torchrun``
the processes share the tensors, and every rank must call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from megatron_mixcpt.conversion.adapters.checkpoint import holds_adapters, open_adapters
from megatron_mixcpt.conversion.adapters.merged import MergedModel, find_base
from megatron_mixcpt.conversion.architectures.rules import Block, Rule
from megatron_mixcpt.conversion.carried import find_carried
from megatron_mixcpt.conversion.hf_export_files import (
    metadata_folder,
    origin_of,
    warning_of_end,
    write_card,
    write_config,
)
from megatron_mixcpt.conversion.hf_metadata import copy_files, copy_hf_metadata
from megatron_mixcpt.conversion.hf_model_folder import (
    CONFIG_NAME,
    EMBEDDING,
    OUTPUT_LAYER,
    HFModel,
    ModelPlan,
    read_config,
    read_model_folder,
)
from megatron_mixcpt.conversion.megatron_layout import Place, place_of, stacks_layers
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.conversion.megatron_writer import TensorSource, write_release
from megatron_mixcpt.conversion.tensor_files.writer import MAX_SHARD_BYTES, SafetensorsWriter, TensorShape
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.ranks import barrier, get_rank, get_world_size, whole_folder_of_ranks
from megatron_mixcpt.training_log import logged_figures

PADDED = (EMBEDDING, OUTPUT_LAYER)


@dataclass(frozen=True)
class Summary:
    """What a conversion did, for the tools to print."""

    folder: Path
    num_tensors: int
    num_bytes: int
    warning: str | None = None
    quantization: str | None = None
    """Of the base model's weights."""

    def __str__(self) -> str:
        written = f"{self.folder}: {self.num_tensors} tensors, {self.num_bytes / 1e9:.2f} GB"
        if self.quantization:
            written += f" in full precision; the base model's weights were quantized ({self.quantization})"
        return f"{written}\nwarning: {self.warning}" if self.warning else written


def convert_from_hf(hf_dir: str | Path, save_dir: str | Path) -> Summary:
    """Write a model folder as a Megatron checkpoint that any tensor- and pipeline-parallel layout loads.

    Weights keep their dtype bit for bit. The checkpoint is a release: ``--pretrained-checkpoint`` and ``--load`` start
    at iteration 0 from it.

    Raises:
        CheckpointError: the folder is damaged, or ``save_dir`` exists.
        ConfigError: the engine cannot express the model.
    """
    hf_model, target = read_model_folder(hf_dir), Path(save_dir)
    sources = [source for rule in hf_model.rules().values() for source in _sources(hf_model, rule)]
    parallel = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    with whole_folder_of_ranks(target) as aside:
        write_release(aside, sources, {**hf_model.engine_arguments, **parallel})
        if get_rank() == 0:
            copy_hf_metadata(hf_model.folder, aside, hf_model)
    num_bytes = sum(source.num_bytes for source in sources)
    return Summary(target, len(sources), num_bytes, quantization=hf_model.quantization)


def _sources(hf_model: HFModel, rule: Rule) -> list[TensorSource]:
    dtype = hf_model.tensors.entries[next(iter(rule.hf_shapes(hf_model.dims)))].dtype
    places, stored = places_in(rule, hf_model), rule.stored(hf_model.dims)
    return [
        TensorSource(place, shape, dtype, partial(_fill, hf_model, blocks))
        for (place, shape), (_, blocks) in zip(places.items(), stored, strict=True)
    ]


def places_in(rule: Rule, plan: ModelPlan) -> dict[Place, tuple[int, ...]]:
    """Where a checkpoint of this model holds a rule's tensor: one place, or several one below the other; their shapes.

    The shapes are without the leading axes of the places.
    """
    arguments, dims = plan.engine_arguments, plan.dims
    num_layers, num_experts, stacked = arguments["num_layers"], arguments["num_experts"] or 0, stacks_layers(arguments)
    trailing = rule.engine_shape(dims)[1:]
    return {
        place_of(name, num_layers, num_experts, stacked): (sum(block.num_rows for block in blocks), *trailing)
        for name, blocks in rule.stored(dims)
    }


def read_whole(checkpoint: MegatronCheckpoint, rule: Rule, plan: ModelPlan) -> torch.Tensor:
    """A rule's tensor, of all ranks and all its places, in fresh CPU memory."""
    parts = [checkpoint.read(place) for place in places_in(rule, plan)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fill(hf_model: HFModel, blocks: list[Block], target: torch.Tensor) -> None:
    row = 0
    for block in blocks:
        rows = target[row : row + block.num_rows]
        if block.transposed or block.interleaved:
            rows.copy_(block.from_hf(hf_model.tensors.read(block.name, *block.hf_slices, block.index)))
        else:
            hf_model.tensors.read_into(rows, block.name, block.rows, index=block.index)
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
        hf_reference: the base model's folder, for what the checkpoint lacks: the weights that adapters are merged into,
            tensors that are not trained, or the config and tokenizer of a missing ``hf/``.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another model, ``hf_reference`` is needed or another
            model, or ``save_dir`` exists.
    """
    checkpoint, target = MegatronCheckpoint(load_dir, iteration), Path(save_dir)
    metadata = metadata_folder(Path(load_dir), hf_reference)
    plan, origin = read_config(metadata), origin_of(metadata)
    base = find_base(origin, hf_reference, Path(load_dir)) if holds_adapters(checkpoint) else None
    carried = find_carried(origin, hf_reference, Path(load_dir))
    if named := base or (carried and carried.model):
        plan = replace(plan, names=named.names)
    rules = plan.rules()
    source = MergedModel(base, open_adapters(checkpoint, plan)) if base else _checked_model(checkpoint, plan, rules)
    tensors = {
        name: TensorShape(shape, dtype or source.dtype(rule))
        for rule in rules.values()
        for name, shape in rule.hf_shapes(plan.dims).items()
    }
    if carried:
        tensors |= carried.shapes
    arguments = checkpoint.arguments()
    with whole_folder_of_ranks(target) as aside:
        writer = SafetensorsWriter(aside, tensors, max_shard_bytes)
        if get_rank() == 0:
            writer.create()
        barrier()
        _write_tensors(source, list(rules.values()), writer)
        if carried:
            carried.copy_into(writer)
        if get_rank() == 0:
            copy_files(metadata, aside)
            write_config(plan, aside, {tensors[name].dtype for name in plan.hf_shapes()}, arguments)
            figures = logged_figures(checkpoint.folder.parent, checkpoint.iteration, arguments.get("tensorboard_dir"))
            write_card(metadata, aside, arguments, source.described() | figures)
    num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    return Summary(target, len(tensors), num_bytes, warning_of_end(metadata, arguments), plan.quantization)


class ModelToExport(Protocol):
    """Where the tensors of an exported model come from: a checkpoint that holds them, or a base model and adapters."""

    def dtype(self, rule: Rule) -> torch.dtype:
        """The dtype that the rule's tensors have, and keep unless another one is asked for."""

    def hf_tensors(self, rule: Rule) -> Mapping[str, torch.Tensor]:
        """The tensors that the rule makes, as precise as they are; of stacked ones, that of the rule's ``hf_index``."""

    def described(self) -> dict[str, str | float]:
        """What the model card says of it."""


@dataclass(frozen=True)
class _CheckpointModel:
    """A checkpoint that holds the whole model."""

    checkpoint: MegatronCheckpoint
    plan: ModelPlan
    dtypes: Mapping[str, torch.dtype]

    def dtype(self, rule: Rule) -> torch.dtype:
        return self.dtypes[rule.engine]

    def hf_tensors(self, rule: Rule) -> Mapping[str, torch.Tensor]:
        return rule.take_apart(read_whole(self.checkpoint, rule, self.plan), self.plan.dims)

    def described(self) -> dict[str, str | float]:
        return {}


def _checked_model(checkpoint: MegatronCheckpoint, plan: ModelPlan, rules: Mapping[str, Rule]) -> ModelToExport:
    return _CheckpointModel(checkpoint, plan, check_checkpoint(checkpoint, plan, rules))


def _write_tensors(source: ModelToExport, rules: list[Rule], writer: SafetensorsWriter) -> None:
    for rule in tqdm(
        rules[get_rank() :: get_world_size()], desc="export", unit="tensor", disable=None if get_rank() == 0 else True
    ):
        for name, part in source.hf_tensors(rule).items():
            writer.write(name, part.to(writer.tensors[name].dtype), rule.hf_index)


def check_checkpoint(
    checkpoint: MegatronCheckpoint, plan: ModelPlan, rules: Mapping[str, Rule]
) -> dict[str, torch.dtype]:
    """Check that a checkpoint holds exactly the model's tensors, with their shapes; returns dtypes by engine name.

    Raises CheckpointError that lists the missing and the unexpected tensors, or names the first shape that differs.
    """
    present = checkpoint.model_tensors()
    expected = {name: places_in(rule, plan) for name, rule in rules.items()}
    keys = {place.key for places in expected.values() for place in places}
    missing, unexpected = sorted(keys - set(present)), sorted(set(present) - keys)
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.folder} does not match {plan.folder / CONFIG_NAME}: missing {missing}; "
            f"unexpected {unexpected}"
        )
    for name, place, rows in ((name, *item) for name, places in expected.items() for item in places.items()):
        shape, wanted = tuple(present[place.key][0]), (*place.sizes, *rows)
        padded = name in PADDED and shape[0] >= wanted[0] and shape[1:] == wanted[1:]
        if shape != wanted and not padded:
            raise CheckpointError(f"{checkpoint.folder}: {place.key} has shape {shape}, {CONFIG_NAME} implies {wanted}")
    return {name: present[next(iter(places)).key][1] for name, places in expected.items()}

"""Write the adapters of a checkpoint as a folder that PEFT loads beside the base model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from megatron_mixcpt.conversion.adapters.checkpoint import CheckpointAdapters, holds_adapters, open_adapters
from megatron_mixcpt.conversion.adapters.merged import check_base
from megatron_mixcpt.conversion.adapters.modules import WEIGHT, hf_weights, take_b_apart
from megatron_mixcpt.conversion.adapters.peft_config import CONFIG_NAME, PREFIX, WEIGHTS_NAME, PeftConfig, config_values
from megatron_mixcpt.conversion.adapters.target_modules import target_modules
from megatron_mixcpt.conversion.architectures.tensor_names import INSIDE
from megatron_mixcpt.conversion.convert import Summary
from megatron_mixcpt.conversion.hf_export_files import metadata_folder, origin_of, write_card
from megatron_mixcpt.conversion.hf_metadata import copy_files
from megatron_mixcpt.conversion.hf_model_folder import CONFIG_NAME as MODEL_CONFIG_NAME
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan, read_config, read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.conversion.tensor_files.writer import SafetensorsWriter, TensorShape
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.ranks import barrier, get_rank, get_world_size, whole_folder_of_ranks
from megatron_mixcpt.training_log import logged_figures


def export_adapter(
    load_dir: str | Path,
    save_dir: str | Path,
    *,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    hf_reference: str | Path | None = None,
) -> Summary:
    """Write the adapters of a checkpoint, saved at any layout, as a PEFT folder.

    Under ``torchrun`` the processes share the adapters, and every rank must call. Memory is that of one adapter.

    Args:
        load_dir: a checkpoint folder with its ``hf/`` metadata.
        save_dir: the folder to make; must not exist.
        iteration: None exports the one that the tracker file names.
        dtype: None keeps the checkpoint's.
        hf_reference: the base model's folder, which is then checked, and named in ``adapter_config.json``.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or without adapters, ``hf_reference`` is another model, the
            run changed the base model's settings, or ``save_dir`` exists.
    """
    checkpoint, target = MegatronCheckpoint(load_dir, iteration), Path(save_dir)
    if not holds_adapters(checkpoint):
        raise CheckpointError(f"{checkpoint.folder} holds a whole model, not adapters: remove --adapter")
    metadata = metadata_folder(Path(load_dir), hf_reference)
    origin = origin_of(metadata)
    _refuse_changed_settings(origin, Path(load_dir))
    if hf_reference is not None:
        check_base(origin, read_model_folder(hf_reference), Path(load_dir))
    plan = _named_as_in_memory(read_config(metadata))
    adapters = open_adapters(checkpoint, plan)
    _refuse_names_of_experts(adapters, plan)
    tensors = _layout(adapters, plan, dtype or adapters.dtype)
    base = origin.get("base_model") if hf_reference is None else str(hf_reference)
    with whole_folder_of_ranks(target) as aside:
        writer = SafetensorsWriter(aside, tensors, single_name=WEIGHTS_NAME)
        if get_rank() == 0:
            writer.create()
        barrier()
        _write_tensors(adapters, plan, writer)
        if get_rank() == 0:
            copy_files(metadata, aside)
            (aside / MODEL_CONFIG_NAME).unlink()  # of the base model, which transformers would take this folder for
            values = config_values(_config_of(adapters), _targets(adapters, plan), base)
            (aside / CONFIG_NAME).write_text(json.dumps(values, indent=2) + "\n")
            _write_card(adapters, metadata, aside)
    return Summary(target, len(tensors), sum(tensor.num_bytes for tensor in tensors.values()))


def _refuse_changed_settings(origin: dict[str, Any], load_dir: Path) -> None:
    if scaling := origin.get("rope_scaling"):
        raise CheckpointError(
            f"{load_dir} was trained with --rope-scaling {scaling}, which a PEFT folder cannot say of its base model: "
            "remove --adapter, and merge with --hf-reference"
        )


def _refuse_names_of_experts(adapters: CheckpointAdapters, plan: ModelPlan) -> None:
    """Raise CheckpointError for MLPs beside routed experts, whose names PEFT takes for those of the experts.

    With transformers 5 it makes targets that end in them parameters of the joined experts, whatever the rest of the
    name (``_convert_peft_config_moe`` in peft/utils/transformers_weight_conversion.py, 0.21).
    """
    module = next((module for module in adapters.rules if ".mlp." in module), None)
    if plan.engine_arguments["num_experts"] and module is not None:
        raise CheckpointError(
            f"{adapters.checkpoint.folder} has an adapter beside {module}, whose name PEFT takes for that of a routed "
            "expert: remove --adapter, and merge with --hf-reference"
        )


def _named_as_in_memory(plan: ModelPlan) -> ModelPlan:
    """The plan with the names that a multimodal model's modules have in transformers, whatever its files have."""
    return plan if plan.architecture.tower is None else replace(plan, names=INSIDE)


def _config_of(adapters: CheckpointAdapters) -> PeftConfig:
    settings = adapters.settings
    return PeftConfig(settings.lora_rank or 0, settings.lora_alpha, settings.lora_dropout, settings.lora_use_rslora)


def _layout(adapters: CheckpointAdapters, plan: ModelPlan, dtype: torch.dtype) -> dict[str, TensorShape]:
    rank, layout = adapters.settings.lora_rank or 0, dict[str, TensorShape]()
    for rule in adapters.rules.values():
        for module, (rows, columns) in hf_weights(rule, plan.dims).items():
            for name, shape in zip(_names(module), ((rank, columns), (rows, rank)), strict=True):
                layout[name] = TensorShape(shape, dtype)
    return layout


def _names(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _write_tensors(adapters: CheckpointAdapters, plan: ModelPlan, writer: SafetensorsWriter) -> None:
    mine = list(adapters.rules.items())[get_rank() :: get_world_size()]
    for module, rule in tqdm(mine, desc="export", unit="adapter", disable=None if get_rank() == 0 else True):
        a, b = adapters.read(module)
        for hf_module, part in take_b_apart(rule, b, plan.dims).items():
            for name, tensor in zip(_names(hf_module), (a, part), strict=True):
                writer.write(name, tensor.to(writer.tensors[name].dtype))


def _targets(adapters: CheckpointAdapters, plan: ModelPlan) -> list[str]:
    """``target_modules``; full names beside a vision tower, whose modules config.json does not list."""
    adapted = [name for rule in adapters.rules.values() for name in hf_weights(rule, plan.dims)]
    if plan.architecture.tower is not None:
        return sorted(adapted)
    return target_modules(adapted, [name.removesuffix(WEIGHT) for name in plan.hf_shapes()])


def _write_card(adapters: CheckpointAdapters, metadata: Path, folder: Path) -> None:
    checkpoint = adapters.checkpoint
    arguments = checkpoint.arguments()
    figures = logged_figures(checkpoint.folder.parent, checkpoint.iteration, arguments.get("tensorboard_dir"))
    write_card(metadata, folder, arguments, adapters.described() | figures, library="peft")

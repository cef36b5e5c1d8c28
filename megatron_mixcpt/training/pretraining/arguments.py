"""From the command line to the engine's arguments: Megatron's flags, ours, and what the model and the mixture decide.

A flag that the user gives holds or is refused. The others are filled in: the architecture from the Hugging Face folder,
the length of the run from the mixture, the rest from the paper's settings.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.conversion.architectures.hf_config import FREE_ARGUMENTS, ROPE_ARGUMENTS
from megatron_mixcpt.conversion.context_length import lengthened
from megatron_mixcpt.conversion.hf_model_folder import HFModel, ModelPlan, read_model_folder, refuse_contradictions
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.mixture.plan import MixturePlan, plan_mixture, split_fractions
from megatron_mixcpt.data.mixture.shares import parse_epochs, parse_weights, passes_of
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import flag_name, settings_from
from megatron_mixcpt.parallel_sizes import ParallelSizes, check_batches, global_batch_size
from megatron_mixcpt.training.document_lengths import check_document_lengths
from megatron_mixcpt.training.engine.arguments import (
    check_packed_rows,
    check_vocabulary,
    checked_sizes,
    engine_defaults,
    explicit_arguments,
    merge_settings,
    parse_engine_args,
    refuse_decided,
    refuse_foreign_architecture,
)
from megatron_mixcpt.training.engine.checkpoints import resumable
from megatron_mixcpt.training.engine.decided_flags import DECIDED_IN_PRETRAINING
from megatron_mixcpt.training.engine.run_record import build_record, check_resumes
from megatron_mixcpt.training.engine.transformer_engine import check_transformer_engine
from megatron_mixcpt.training.engine.whole_validation import validation_settings
from megatron_mixcpt.training.expert_flags import check_experts
from megatron_mixcpt.training.layout_flags import check_evaluation
from megatron_mixcpt.training.lora.record import adapters_record
from megatron_mixcpt.training.lora.run_settings import (
    as_settings,
    check_adapters_in,
    check_lora,
    resolved_lora,
    tenfold,
)
from megatron_mixcpt.training.pretraining.record import mixture_contents, rotary_embedding
from megatron_mixcpt.training.pretraining.validation_sets import held_out_datasets, parse_named_sets, validation_names

# What holds unless a flag says otherwise. Learning rates and sequence length are the paper's (section 3.1).
RECIPE_DEFAULTS: dict[str, Any] = {
    "seq_length": 2048,
    "micro_batch_size": 1,
    "lr": 2e-5,
    "min_lr": 5e-6,
    "lr_decay_style": "cosine",
    "split": "100,0,0",
    "eval_interval": 1000,
    "eval_iters": 10,
    "save_interval": 1000,
    "log_interval": 10,
}


@dataclass(frozen=True)
class Run:
    """What a run was asked to do, all checked against one another."""

    args: argparse.Namespace
    config: MixCPTConfig
    sizes: ParallelSizes
    student: HFModel
    teacher: HFModel
    lora: LoRASettings | None
    """Adapters that are trained in the place of the student; None: the student is."""
    manifest: MixtureManifest
    plan: MixturePlan
    named_sets: dict[str, Path]
    """Name -> path of each ``--validation``."""
    checkpoint: MegatronCheckpoint | None
    """What the engine loads the student, or its adapters, from; None: its weights are those of ``student``."""

    @property
    def teaches_itself(self) -> bool:
        """Whether the teacher is the student with its adapters off."""
        return self.lora is not None and not self.config.teacher and self.config.objective.runs_teacher


def parse_run(argv: Sequence[str]) -> Run:
    """Read the command line, the model folders and the manifest, and set the engine's global arguments.

    Raises:
        MixCPTError: what the user can correct, in one line.
    """
    explicit = explicit_arguments(argv, MixCPTConfig)
    config = settings_from(explicit, MixCPTConfig)
    refuse_decided(explicit, DECIDED_IN_PRETRAINING)
    student = read_model_folder(config.hf_model)
    refuse_contradictions(explicit, student)
    manifest = MixtureManifest.load(config.mixture)
    _check_tokenizer(manifest, student)
    teacher = _read_teacher(config, student, manifest)
    student = lengthened(student, config.rope_scaling, explicit.get("max_position_embeddings"))
    refuse_foreign_architecture(explicit, student)
    lora = resolved_lora(config.lora, student)
    recipe = tenfold(RECIPE_DEFAULTS) if lora else RECIPE_DEFAULTS
    settings = merge_settings(recipe | engine_defaults(student, manifest.tokenizer.eos_id), explicit)
    if lora:
        check_lora(lora, student, settings)
        settings |= as_settings(lora)
    load = explicit.get("load", explicit.get("save"))  # the same command again resumes
    resumed = resumable(load, explicit.get("ckpt_step"))
    checkpoint = resumed or resumable(explicit.get("pretrained_checkpoint"))
    check_adapters_in(checkpoint, trains_adapters=lora is not None)
    if resumed:
        settings["load"] = load
    check_transformer_engine(explicit, settings, teacher_fp8=config.teacher_fp8)
    check_experts(settings)
    if config.document_masking:
        settings["dataloader_inter_document_masking"] = True  # the engine's datasets then reset the positions as well
    sizes = _checked_sizes(config, settings, (student, teacher) if config.objective.runs_teacher else (student,))
    plan = plan_run(manifest, config, settings, global_batch_size(sizes, settings))
    if "train_iters" not in settings and "train_samples" not in settings:
        settings["train_iters"] = plan.train_iters(global_batch_size(sizes, settings))
    named = parse_named_sets(config.validation)
    settings |= _validation(explicit, settings, sizes, _held_out(settings, manifest, plan), named)
    args = parse_engine_args(argv, MixCPTConfig, settings)
    contents = mixture_contents(config, manifest, plan) | rotary_embedding(config, student)
    record = build_record(args, config, contents | adapters_record(lora, student, config.lora.lora_adapter))
    check_resumes(args, resumed, record, student.engine_arguments, allow=config.resume_with_changes)
    return Run(args, config, sizes, student, teacher, lora, manifest, plan, named, checkpoint)


def _read_teacher(config: MixCPTConfig, student: HFModel, manifest: MixtureManifest) -> HFModel:
    if not config.teacher:
        return student
    teacher = read_model_folder(config.teacher)
    _check_same_shape(student, teacher)
    _check_tokenizer(manifest, teacher)
    return teacher


def _checked_sizes(config: MixCPTConfig, settings: dict[str, Any], models: Sequence[ModelPlan]) -> ParallelSizes:
    """How the ranks are divided. Raises ConfigError for a layout, or kernels, that the run cannot use."""
    sizes = checked_sizes(settings)
    check_batches(sizes, settings)
    check_evaluation(sizes, settings)
    if settings.get("dataloader_inter_document_masking"):
        check_packed_rows(settings, "--document-masking")
        for model in models:
            check_document_lengths(model.options, model.folder, settings["seq_length"], "--document-masking")
    return sizes


def plan_run(manifest: MixtureManifest, config: MixCPTConfig, settings: dict[str, Any], batch_size: int) -> MixturePlan:
    """How many sequences of each dataset the run draws: ``--epochs``, or as many passes as the iterations need.

    ``--mixture-weights`` shares them out; without it the datasets keep the proportions of ``--epochs``.
    """
    epochs, weights = parse_epochs(config.epochs), parse_weights(config.mixture_weights)
    shape = {"sequence_length": settings["seq_length"], "split": settings["split"], "weights": weights}
    plan = plan_mixture(manifest, epochs=epochs, **shape)
    if "train_iters" not in settings and "train_samples" not in settings:
        return plan
    needed = settings.get("train_samples") or settings["train_iters"] * batch_size
    once = passes_of(manifest.datasets, epochs if isinstance(epochs, dict) else 1.0)
    passes = 1
    while (plan := plan_mixture(manifest, epochs=_times(passes, once), **shape)).num_sequences < needed:
        passes = max(passes + 1, passes * needed // plan.num_sequences)
    return plan


def _times(factor: int, epochs: dict[str, float]) -> dict[str, float]:
    return {name: factor * value for name, value in epochs.items()}


def _held_out(settings: dict[str, Any], manifest: MixtureManifest, plan: MixturePlan) -> list[str]:
    """The datasets that ``--split`` holds sequences out of."""
    return held_out_datasets(manifest, plan) if split_fractions(settings["split"])[1] > 0.0 else []


def _validation(
    explicit: dict[str, Any], settings: dict[str, Any], sizes: ParallelSizes, held_out: list[str], named: Iterable[str]
) -> dict[str, Any]:
    """The engine's settings of validation. Raises ConfigError for flags that contradict complete validation sets."""
    if not named and not held_out:
        return {"eval_iters": 0}  # the engine would make a missing dataset up
    if not named and "eval_iters" in explicit:
        return {}
    names = validation_names(held_out, named)
    decided = validation_settings(names, sizes)
    if "eval_iters" in explicit:
        raise ConfigError(
            f"--eval-iters {settings['eval_iters']} with --validation, whose sets are measured completely: remove one"
        )
    for name in sorted(decided.keys() & explicit.keys()):
        raise ConfigError(
            f"{flag_name(name)} is not used where complete validation sets are measured: remove it, or give "
            "--eval-iters N to measure N batches of all datasets together"
        )
    return decided


def _check_same_shape(student: HFModel, teacher: HFModel) -> None:
    """Both models share one pipeline and one vocabulary: what the weights mean must be the same."""
    ours, theirs = ({**model.engine_arguments, **vars(model.options)} for model in (student, teacher))
    free = FREE_ARGUMENTS | ROPE_ARGUMENTS | {"rope", "layer_ropes"}  # each model has its own rotary embedding
    different = [name for name in ours if ours[name] != theirs.get(name) and name not in free]
    if different:
        listed = ", ".join(f"{name} {theirs.get(name)} (--hf-model has {ours[name]})" for name in different)
        raise ConfigError(f"--teacher {teacher.folder} is another model: {listed}. Give a teacher of the same shape")


def _check_tokenizer(manifest: MixtureManifest, model: HFModel) -> None:
    """The mixture's tokens must be this model's, and it must have a row for each of them."""
    manifest.check_tokenizer(model.folder)
    check_vocabulary(model, manifest.tokenizer.vocab_size)

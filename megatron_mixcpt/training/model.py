"""Builds the student and, beside it on each pipeline stage, the frozen teacher, through the engine's own builder.

A student with adapters needs no second model: its own layers, which are frozen, are the teacher's.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from megatron_mixcpt.adapters.attached import Adapters
from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.distillation.offload import offload_layers
from megatron_mixcpt.distillation.wrapper import Head, StudentTeacherModel
from megatron_mixcpt.models.configure import complete_model, configure_model
from megatron_mixcpt.models.options import ModelOptions


@dataclass(kw_only=True)
class StudentTeacherModelConfig(GPTModelConfig):
    """The engine's GPT model, a frozen teacher beside it, and what the last stage makes of the two."""

    builder: ClassVar[str] = "megatron_mixcpt.training.model.StudentTeacherModelBuilder"

    student_options: ModelOptions = field(default_factory=ModelOptions)
    """What the trained model has beyond the engine's configuration."""

    teacher_options: ModelOptions = field(default_factory=ModelOptions)
    """What the teacher has; its rotary embedding may be another than the student's."""

    holds_teacher: bool = False
    """Build the frozen teacher's stage beside the student's."""

    offload_teacher: bool = False
    """Keep the teacher's layers in host memory."""

    teacher_fp8: bool = False
    """Run the teacher's layers in 8 bits."""

    lora: LoRASettings | None = None
    """Freeze the student and train adapters beside it."""

    lora_seed: int = 0
    """Decides the adapters' first values."""

    teaches_itself: bool = False
    """Let the student with its adapters off be the teacher."""

    build_head: Callable[[ProcessGroupCollection], Head] | None = None
    """Makes the last stage's head."""


class StudentTeacherModelBuilder(GPTModelBuilder):
    """Builds each stage twice: the student's, which the engine trains, and the teacher's, which it never sees."""

    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> StudentTeacherModel:
        """Build one stage; arguments as in the base class. Weights are whatever the engine initialises."""
        config = self._model_config
        stage = (pg_collection, pre_process, post_process, vp_stage)
        # Adapters read what the linear layers do, which a norm within the layer would hide.
        configure_model(config.transformer, replace(config.student_options, separate_norms=config.lora is not None))
        student = super().build_model(*stage)
        complete_model(student)
        adapters = Adapters(student, config.lora, pg_collection) if config.lora else None
        if adapters:
            adapters.initialize(config.lora_seed)
        teacher = GPTModelBuilder(_frozen(config)).build_model(*stage) if config.holds_teacher else None
        if teacher is not None:
            complete_model(teacher)
            _freeze(teacher)
            if config.offload_teacher:
                offload_layers(teacher, teacher.decoder.layers, torch.cuda.current_device())
        head = config.build_head(pg_collection)
        return StudentTeacherModel(student, teacher, head, adapters, teaches_itself=config.teaches_itself)


def _frozen(config: StudentTeacherModelConfig) -> StudentTeacherModelConfig:
    """The configuration without what only a backward pass needs: to the teacher, recomputation is waste.

    Nor does it inherit the student's 8 bits: whether a teacher runs in them is ``teacher_fp8``'s to say.
    """
    transformer = copy.copy(config.transformer)
    transformer.recompute_granularity = None
    transformer.fp8, transformer.first_last_layers_bf16 = None, False
    if config.teacher_fp8:
        # Scaled by what each tensor holds now: a scale from earlier batches needs a history, and a reduction of it.
        transformer.fp8, transformer.fp8_recipe = "e4m3", "tensorwise"
    if config.offload_teacher:
        transformer.use_cpu_initialization = True  # the device never holds all of it
        # Nor a copy of it in 8 bits, which Transformer Engine otherwise keeps of each weight from its first use on
        # (megatron/core/extensions/transformer_engine.py, ``is_first_microbatch``). Where the weights stay on the
        # device, the copy stays too and saves making it anew for each microbatch. No transposes are made without
        # gradients.
        transformer.disable_parameter_transpose_cache = True
    configure_model(transformer, config.teacher_options)
    frozen = copy.copy(config)
    object.__setattr__(frozen, "transformer", transformer)
    return frozen


def _freeze(teacher: GPTModel) -> None:
    """No gradients, no dropout, the precision that the engine's Float16Module gives the student; in place."""
    teacher.requires_grad_(False)
    teacher.eval()
    if not teacher.config.use_cpu_initialization:
        teacher.cuda(torch.cuda.current_device())
    teacher.to(teacher.config.params_dtype)

"""Builds the student and, beside it on each pipeline stage, the frozen teacher, through the engine's own builder."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from megatron_mixcpt.distillation.wrapper import MixCPTModel


@dataclass(kw_only=True)
class MixCPTModelConfig(GPTModelConfig):
    """The engine's GPT model with what distillation adds to it."""

    builder: ClassVar[str] = "megatron_mixcpt.training.model.MixCPTModelBuilder"

    holds_teacher: bool = False
    """Build the frozen teacher's stage beside the student's."""

    alpha: float = 1.0
    """Weight of next-token prediction (Eq. 7)."""

    swap: bool = True
    """Exchange the teacher's top-1 and ground-truth logits (Eq. 4)."""

    true_vocab_size: int = 0
    """Number of vocabulary columns without the padding of tensor parallelism."""


class MixCPTModelBuilder(GPTModelBuilder):
    """Builds each stage twice: the student's, which the engine trains, and the teacher's, which it never sees."""

    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> MixCPTModel:
        """Build one stage; arguments as in the base class. Weights are whatever the engine initialises."""
        config = self._model_config
        stage = (pg_collection, pre_process, post_process, vp_stage)
        student = super().build_model(*stage)
        teacher = GPTModelBuilder(_frozen(config)).build_model(*stage) if config.holds_teacher else None
        if teacher is not None:
            _freeze(teacher)
        return MixCPTModel(student, teacher, alpha=config.alpha, swap=config.swap, vocab_size=config.true_vocab_size)


def _frozen(config: MixCPTModelConfig) -> MixCPTModelConfig:
    """The configuration without what only a backward pass needs: to the teacher, recomputation is waste."""
    transformer = copy.copy(config.transformer)
    transformer.recompute_granularity = None
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

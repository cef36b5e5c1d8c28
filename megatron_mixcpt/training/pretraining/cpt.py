"""Knowledge mixture continual pre-training (Mix-CPT section 2.2): model, loss and data meet the engine's training loop.

Everything distributed is the engine's ``pretrain()``. Read on in ``distillation/wrapper.py``.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import unwrap_model
from megatron.training import get_timers
from torch import Tensor

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.conversion.context_length import canonical
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.data.datasets.sequence_origins import describe_sequence
from megatron_mixcpt.distillation.mixcpt_head import MixCPTHead, MixCPTTargets
from megatron_mixcpt.distillation.wrapper import StudentTeacherModel
from megatron_mixcpt.inference.engine_model import load_on_this_rank
from megatron_mixcpt.models.auxiliary_losses import AUXILIARY_LOSSES, Microbatch
from megatron_mixcpt.objective import Objective
from megatron_mixcpt.rank_exit import exit_as_rank
from megatron_mixcpt.training.batch import get_batch
from megatron_mixcpt.training.engine.console import quiet_terminal, show_start
from megatron_mixcpt.training.engine.launch import (
    build_model_config,
    only_run,
    prepare_environment,
    start_distributed,
    train,
)
from megatron_mixcpt.training.lora.record import digest_of_base
from megatron_mixcpt.training.lora.start import fill_adapters
from megatron_mixcpt.training.pretraining.arguments import Run, parse_run
from megatron_mixcpt.training.pretraining.datasets import IndexedSamples, dataset_provider, set_identities
from megatron_mixcpt.training.pretraining.forgetting import ForgettingMeter, shown_forgetting
from megatron_mixcpt.training.pretraining.l2 import L2Anchor
from megatron_mixcpt.training.pretraining.loss import TokensPerSecond, mixcpt_loss_func
from megatron_mixcpt.training.pretraining.summary import describe
from megatron_mixcpt.training.pretraining.validation_sets import NamedSet, open_named_sets

OUT_OF_MEMORY = (
    "try a smaller --micro-batch-size, --loss-chunk-tokens 512, --recompute-granularity, --teacher-offload cpu, "
    "--lora-rank, or more tensor or pipeline parallel ranks; tools/plan.py says what each takes"
)


@exit_as_rank(OUT_OF_MEMORY)
@quiet_terminal
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says; the engine's flags and those of :class:`MixCPTConfig`."""
    prepare_environment()
    argv = sys.argv[1:] if argv is None else argv
    with only_run(argv, MixCPTConfig):
        _train(parse_run(argv))


def _train(run: Run) -> None:
    args, config = run.args, run.config
    show_start(args, config, describe(run))
    if config.dry_run:
        return
    groups = start_distributed()
    model_config = build_model_config(
        args,
        options=run.student.options,
        teacher_options=run.teacher.options,
        holds_teacher=config.objective.holds_teacher and not run.teaches_itself,
        build_head=functools.partial(build_head, run),
        load_weights=functools.partial(load_weights, run),
        offload_teacher=config.teacher_offload == "cpu",
        teacher_fp8=config.teacher_fp8,
        lora=run.lora,
        teaches_itself=run.teaches_itself,
    )
    if args.save and args.rank == 0:
        rope_scaling = canonical(run.student) if config.rope_scaling else None
        base_weights = digest_of_base(run.lora, run.student)
        copy_hf_metadata(
            run.student.folder, args.save, run.student, rope_scaling=rope_scaling, base_weights=base_weights
        )
    named = open_named_sets(run.named_sets, run.manifest, run.student.folder, args.data_cache_path)
    meter = build_meter(run, named)
    datasets = dataset_provider(args, run.manifest, run.plan, named)
    forward_step = forward_step_func(args, config, groups, [dataset.name for dataset in run.plan.datasets], meter)
    describe_sample = functools.partial(describe_sample_of, run)
    train(
        args,
        config,
        model_config,
        groups,
        datasets,
        forward_step,
        describe_sample,
        runs_teacher=config.objective.runs_teacher,
        engine_changes=shown_forgetting(meter) if meter else (),
    )


def describe_sample_of(run: Run, dataset: IndexedSamples, index: int) -> str:
    """The documents of a training sequence, for reports."""
    return describe_sequence(dataset.dataset, index, run.manifest)


def build_meter(run: Run, named: Mapping[str, NamedSet]) -> ForgettingMeter | None:
    """Compares student and teacher in evaluations; None where no set is measured completely."""
    args = run.args
    if not args.full_validation:
        return None
    identities = set_identities(args, run.manifest, run.plan, named)
    folder = Path(args.save) if args.save else None
    return ForgettingMeter(identities, runs_teacher=run.config.objective.runs_teacher, folder=folder)


def build_head(run: Run, groups: ProcessGroupCollection) -> MixCPTHead:
    """What the last stage makes of both models' hidden states."""
    args, config = run.args, run.config
    return MixCPTHead(
        objective=config.objective,
        vocab_size=run.student.vocab_size,
        tp_group=groups.tp,
        chunk_tokens=config.loss_chunk_tokens,
        sequence_parallel=args.sequence_parallel,
        gradient_accumulation_fusion=args.gradient_accumulation_fusion,
    )


def load_weights(run: Run, chunks: list[StudentTeacherModel]) -> list[StudentTeacherModel]:
    """Fill the student and its adapters, unless a checkpoint will, and the teacher, in place: each rank its own slices.

    A checkpoint of a run with adapters holds them alone. Adapters that start anew have their first values already.
    """
    for chunk in chunks:
        if run.checkpoint is None or run.lora:
            load_on_this_rank(chunk.module, run.student)
        if run.checkpoint is None:
            fill_adapters(chunk.adapters, run.config.lora.lora_adapter, run.student)
        if chunk.teacher is not None:
            load_on_this_rank(chunk.teacher, run.teacher)
    return chunks


def build_anchor(args: argparse.Namespace, objective: Objective, groups: ProcessGroupCollection) -> L2Anchor | None:
    """Draws the weights to the base model's; None where the objective does not."""
    if not objective.anchors_weights:
        return None
    chunks = args.virtual_pipeline_model_parallel_size or 1
    return L2Anchor(objective.l2_coefficient, groups.mp, tp_rank=groups.tp.rank(), num_chunks=chunks)


def forward_step_func(
    args: argparse.Namespace,
    config: MixCPTConfig,
    groups: ProcessGroupCollection,
    kinds: Sequence[str],
    meter: ForgettingMeter | None,
) -> Callable:
    """The engine's ``forward_step_func``: one microbatch through one stage of the model.

    Args:
        args: the engine's arguments.
        config: what is learned.
        groups: this rank's process groups.
        kinds: names of the datasets in the order of the training dataset's parts.
        meter: says in evaluations whether the teacher's own loss is wanted.
    """
    read = functools.partial(
        get_batch,
        seed=args.seed,
        packed_attention=args.transformer_impl == "transformer_engine",
        mask_dtype=args.params_dtype,
        cp_group=groups.cp,
    )
    objective, anchor = config.objective, build_anchor(args, config.objective, groups)
    tokens_per_second = TokensPerSecond(groups.dp_cp.size())

    def forward_step(data_iterator: Iterator, model: torch.nn.Module) -> tuple[Tensor | tuple[Tensor, ...], Callable]:
        training = torch.is_grad_enabled()
        measures_teacher = not training and meter is not None and meter.measures_teacher
        # Validation distils every sample, so that its figures do not depend on the fraction.
        fraction = (objective.distillation_fraction if training else 1.0) if objective.runs_teacher else 0.0
        timers = get_timers()
        timers("batch-generator", log_level=2).start()
        batch = read(data_iterator, fraction=fraction)
        timers("batch-generator").stop()
        AUXILIARY_LOSSES.microbatch = Microbatch(batch.num_tokens * groups.cp.size(), None)
        output = model(
            batch.tokens,
            batch.position_ids,
            batch.attention_mask,
            targets=MixCPTTargets(batch.labels, batch.loss_mask, batch.distill_mask, measures_teacher),
            runs_teacher=batch.distill_mask is not None,
            packed_seq_params=batch.packed_seq_params,
        )
        penalty = None
        if anchor and training:
            penalty = anchor.after_forward(unwrap_model(model), batch.num_tokens, get_num_microbatches())
        loss_func = functools.partial(
            mixcpt_loss_func,
            batch.loss_mask,
            batch.distill_mask,
            objective=objective,
            kinds=kinds if training else (),
            kind=batch.kind,
            penalty=penalty,
        )
        if not training:
            tokens_per_second.restart()
            return output, loss_func
        return output, functools.partial(tokens_per_second, loss_func)

    return forward_step

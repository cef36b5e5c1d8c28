"""What SFT and DPO share beyond their flags: weights, microbatches of packed rows, and the way into the engine.

The policy of DPO and its frozen reference go through the pipeline as student and teacher do, and SFT is the student
alone; see ``distillation/wrapper.py``.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training import get_timers
from torch import Tensor
from torch.utils.data import Dataset

from megatron_mixcpt.config import AlignmentConfig
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.data.chat.templates import RENDERER
from megatron_mixcpt.distillation.log_probs_head import AlignmentTargets, LogProbsHead
from megatron_mixcpt.distillation.wrapper import StudentTeacherModel
from megatron_mixcpt.models.auxiliary_losses import AUXILIARY_LOSSES, Microbatch
from megatron_mixcpt.models.context_parallel import share_of_sequence
from megatron_mixcpt.training.alignment.arguments import parse_alignment_flags
from megatron_mixcpt.training.alignment.batch_steps import BatchSteps
from megatron_mixcpt.training.alignment.loader import dataset_provider
from megatron_mixcpt.training.alignment.loss import LossFunc
from megatron_mixcpt.training.alignment.prepare import AlignmentRun, prepare_run
from megatron_mixcpt.training.alignment.summary import describe
from megatron_mixcpt.training.batch import Batch, get_batch, to_device
from megatron_mixcpt.training.engine.console import show_plan, show_where
from megatron_mixcpt.training.engine.launch import build_model_config, start_distributed, train
from megatron_mixcpt.training.lora.record import digest_of_base
from megatron_mixcpt.training.lora.start import fill_adapters


class Rows(NamedTuple):
    """A microbatch of packed rows, on this rank's device."""

    batch: Batch
    document: Tensor
    """int64 [b, s], see :class:`PackedMicrobatches`; s is this context-parallel rank's share, as in ``batch``."""
    sample: Tensor
    """int64 [b, documents], on the host."""
    num_tokens: float
    """Response tokens of the rows, counted on the host."""
    padding: Tensor
    """bool [b, s] of the rows, on the host: True behind the last document."""


MakeLossFunc = Callable[[Rows], LossFunc]
Count = Callable[[Rows], float]


def start_alignment[Config: AlignmentConfig](
    argv: Sequence[str], config_class: type[Config], defaults: dict[str, Any]
) -> tuple[AlignmentRun[Config], ProcessGroupCollection] | None:
    """Check a command line, start the ranks, open the samples, and show what the run is about to do.

    Inside ``launch.only_run``.

    Args:
        argv: the command line.
        config_class: settings of the stage.
        defaults: engine arguments of the stage.

    Returns:
        The run and its process groups; None where it is a dry run, which ends here.
    """
    flags = parse_alignment_flags(argv, config_class, defaults)
    show_where(flags.args, flags.config)
    dry_run = flags.config.dry_run
    groups = start_distributed() if int(os.environ["WORLD_SIZE"]) > 1 or not dry_run else None
    run = prepare_run(flags)
    show_plan(flags.args, flags.config, describe(run) if flags.args.rank == 0 else "")
    return None if dry_run or groups is None else (run, groups)


def train_alignment(
    run: AlignmentRun,
    groups: ProcessGroupCollection,
    make_loss_func: MakeLossFunc,
    count: Count,
    *,
    runs_reference: bool,
) -> None:
    """Train the model of ``run`` in the engine's loop.

    Args:
        run: the checked command line.
        groups: from ``engine.start_distributed``.
        make_loss_func: the engine's ``loss_func`` for a microbatch.
        count: what a microbatch adds to the number that the engine divides the loss by.
        runs_reference: hold the model that training starts from beside the trained one, and run it.
    """
    args, lora = run.args, run.flags.lora
    model_config = build_model_config(
        args,
        options=run.flags.source.plan.options,
        teacher_options=run.flags.source.plan.options,
        holds_teacher=runs_reference and lora is None,
        build_head=lambda groups: LogProbsHead(run.flags.source.plan.vocab_size, groups.tp),
        load_weights=lambda chunks: _load_weights(run, chunks),
        lora=lora,
        teaches_itself=runs_reference and lora is not None,
    )
    if args.save and args.rank == 0:
        copy_hf_metadata(
            run.flags.source.plan.folder,
            args.save,
            run.flags.source.plan,
            chat_template=run.encoder.template.text,
            stop_token_ids=run.encoder.stop_token_ids(),
            base_weights=digest_of_base(lora, run.flags.source.plan),
        )
    RENDERER.close()  # a process with transformers in it, which training does not need
    forward_step = _forward_step_func(run, groups, make_loss_func, count, runs_reference)
    rank = groups.dp.rank()
    steps = BatchSteps(args, run.train, run.valid, rank)
    train(
        args,
        run.config,
        model_config,
        groups,
        dataset_provider(run, rank),
        forward_step,
        functools.partial(_describe_sample, run),
        runs_teacher=runs_reference,
        engine_changes=steps.changes(),
        tokens_of=steps.num_tokens,
    )


def _describe_sample(run: AlignmentRun, dataset: Dataset, index: int) -> str:
    """Its id, as scoring and selection write it."""
    return f"sample {run.samples.id(index)}"


def _load_weights(run: AlignmentRun, chunks: list[StudentTeacherModel]) -> list[StudentTeacherModel]:
    """Fill the trained model and its adapters, unless it resumes, and the reference, in place.

    Each rank reads its own slices. A checkpoint of a run with adapters holds them alone. Adapters that start anew have
    their first values already.
    """
    for chunk in chunks:
        for model in (None if run.args.load and run.flags.lora is None else chunk.module, chunk.teacher):
            if model is not None:
                run.flags.source.load_into(model)
        if not run.args.load:
            fill_adapters(chunk.adapters, run.config.lora.lora_adapter, run.flags.source.plan)
    return chunks


def _forward_step_func(
    run: AlignmentRun,
    groups: ProcessGroupCollection,
    make_loss_func: MakeLossFunc,
    count: Count,
    runs_reference: bool,
) -> Callable:
    """The engine's ``forward_step_func``: one microbatch through one stage of the model."""
    read = functools.partial(
        get_rows,
        packed_attention=run.args.transformer_impl == "transformer_engine",
        mask_dtype=run.args.params_dtype,
        cp_group=groups.cp,
    )

    def forward_step(data_iterator: Iterator, model: torch.nn.Module) -> tuple[Tensor | tuple[Tensor, ...], LossFunc]:
        timers = get_timers()
        timers("batch-generator", log_level=2).start()
        rows = read(data_iterator)
        timers("batch-generator").stop()
        batch = rows.batch
        if run.args.num_experts:
            padding = padding_on_rank(rows.padding, groups, sequence_parallel=run.args.sequence_parallel)
            AUXILIARY_LOSSES.microbatch = Microbatch(count(rows), padding)
        output = model(
            batch.tokens,
            batch.position_ids,
            batch.attention_mask,
            targets=AlignmentTargets(batch.labels, batch.loss_mask),
            runs_teacher=runs_reference,
            packed_seq_params=batch.packed_seq_params,
        )
        return output, make_loss_func(rows)

    return forward_step


def get_rows(
    data_iterator: Iterator,
    *,
    packed_attention: bool,
    mask_dtype: torch.dtype,
    cp_group: torch.distributed.ProcessGroup,
) -> Rows:
    """Take the next microbatch of packed rows; arguments as in ``batch.get_batch``."""
    item = next(data_iterator)
    sample, document = item.pop("sample"), to_device(item.pop("document"))
    num_tokens, padding = float(item["loss_mask"].sum()), _padding(item["cu_seqlens"], sample, document.shape[1])
    options = {"packed_attention": packed_attention, "mask_dtype": mask_dtype, "cp_group": cp_group}
    batch = get_batch(iter([item]), fraction=0.0, seed=0, **options)
    document = share_of_sequence({"document": document}, cp_group)["document"]
    # Rows that fill a validation set up have every token masked, and then none of a document.
    return Rows(batch, document.masked_fill(batch.loss_mask == 0, sample.shape[1]), sample, num_tokens, padding)


def _padding(boundaries: Tensor, sample: Tensor, length: int) -> Tensor:
    """Which positions of rows [b, s] lie behind the last document; ``boundaries`` and ``sample`` as in the item."""
    ends = boundaries.long().gather(1, (sample >= 0).sum(1, keepdim=True))
    return torch.arange(length) >= ends


def padding_on_rank(padding: Tensor, groups: ProcessGroupCollection, *, sequence_parallel: bool) -> Tensor:
    """This rank's positions of ``padding`` [b, s], as a router sees them: [s / cp / tp, b], on the device.

    Where a microbatch is nothing but padding, its first position counts: a mean over no position would not be finite.
    """
    padding = padding.clone()
    padding[0, 0] &= not bool(padding.all())
    rows = share_of_sequence({"padding": to_device(padding)}, groups.cp)["padding"].transpose(0, 1)
    return rows.chunk(groups.tp.size())[groups.tp.rank()] if sequence_parallel else rows

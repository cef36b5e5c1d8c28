"""What SFT and DPO share beyond their flags: weights, microbatches of packed rows, and the way into the engine.

The policy of DPO and its frozen reference go through the pipeline as student and teacher do, and SFT is the student
alone; see ``distillation/wrapper.py``.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training import get_timers
from torch import Tensor
from torch.utils.data import Dataset

from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.data.datasets.packed_rows import PackedRows
from megatron_mixcpt.distillation.log_probs_head import AlignmentTargets, LogProbsHead
from megatron_mixcpt.distillation.wrapper import StudentTeacherModel
from megatron_mixcpt.training.alignment.arguments import AlignmentRun
from megatron_mixcpt.training.alignment.loss import LossFunc
from megatron_mixcpt.training.batch import Batch, get_batch, to_device
from megatron_mixcpt.training.engine.launch import build_model_config, train
from megatron_mixcpt.training.engine.whole_validation import PaddedSamples


class Rows(NamedTuple):
    """A microbatch of packed rows, on this rank's device."""

    batch: Batch
    document: Tensor
    """int64 [b, s], see :class:`PackedRows`."""
    sample: Tensor
    """int64 [b, max_documents], on the host."""


MakeLossFunc = Callable[[Rows], LossFunc]


def train_alignment(
    run: AlignmentRun, groups: ProcessGroupCollection, make_loss_func: MakeLossFunc, *, runs_reference: bool
) -> None:
    """Train the model of ``run`` in the engine's loop.

    Args:
        run: the checked command line.
        groups: from ``engine.start_distributed``.
        make_loss_func: the engine's ``loss_func`` for a microbatch.
        runs_reference: hold the model that training starts from beside the trained one, and run it.
    """
    args = run.args
    model_config = build_model_config(
        args,
        holds_teacher=runs_reference,
        build_head=lambda groups: LogProbsHead(run.source.plan.vocab_size, groups.tp),
        load_weights=lambda chunks: _load_weights(run, chunks),
    )
    if args.save and args.rank == 0:
        copy_hf_metadata(
            run.source.plan.folder,
            args.save,
            run.source.plan,
            chat_template=run.encoder.template.text,
            stop_token_ids=run.encoder.stop_token_ids(),
        )
    forward_step = _forward_step_func(run, groups, make_loss_func, runs_reference)
    train(
        args,
        run.config,
        model_config,
        groups,
        _dataset_provider(run),
        forward_step,
        functools.partial(_describe_row, run),
        runs_teacher=runs_reference,
    )


def _describe_row(run: AlignmentRun, rows: PackedRows, index: int) -> str:
    """The ids of a row's samples, as scoring and selection write them."""
    return ", ".join(f"sample {run.sample_ids[number]}" for number in rows.batches.row(index)) or "no sample"


def _load_weights(run: AlignmentRun, chunks: list[StudentTeacherModel]) -> list[StudentTeacherModel]:
    """Fill the trained model, unless it resumes, and the reference, in place: each rank its own slices."""
    for chunk in chunks:
        for model in (None if run.args.load else chunk.module, chunk.teacher):
            if model is not None:
                run.source.load_into(model)
    return chunks


def _dataset_provider(run: AlignmentRun) -> Callable:
    """What ``pretrain()`` calls for the training, validation and test datasets, on every rank."""

    def provide(num_samples: tuple[int, int, int], vp_stage: int | None = None) -> tuple[Any, ...]:
        valid: list[Dataset] | None = None
        if run.valid is not None:
            valid = [PaddedSamples(run.valid, run.args.eval_global_batch_size)]
        return run.train, valid, None

    provide.is_distributed = True  # type: ignore[attr-defined] # the engine's word for "build on every rank"
    return provide


def _forward_step_func(
    run: AlignmentRun, groups: ProcessGroupCollection, make_loss_func: MakeLossFunc, runs_reference: bool
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
    options = {"packed_attention": packed_attention, "mask_dtype": mask_dtype, "cp_group": cp_group}
    batch = get_batch(iter([item]), fraction=0.0, seed=0, **options)
    # Rows that fill a validation set up have every token masked, and then none of a document.
    return Rows(batch, document.masked_fill(batch.loss_mask == 0, sample.shape[1]), sample)

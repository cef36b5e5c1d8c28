"""What a run of SFT or DPO is about to do, in a few lines: printed before training, and all that ``--dry-run`` does."""

from collections.abc import Mapping

from megatron_mixcpt.data.chat.refusals import NOTES, REFUSALS
from megatron_mixcpt.data.reading.record_maker import DROP_REASONS
from megatron_mixcpt.data.records import REJECT_REASONS
from megatron_mixcpt.training.alignment.prepare import AlignmentRun
from megatron_mixcpt.training.engine.console import describe_layout
from megatron_mixcpt.training.lora.summary import described_adapters

_REASONS = REJECT_REASONS | DROP_REASONS | REFUSALS
# How full the rows are is worked out for so many batches: seconds at 326,000 samples.
_MOST_BATCHES = 5000


def describe(run: AlignmentRun) -> str:
    """The model, the samples, the batches and the layout as lines of text."""
    args, source, order = run.args, run.flags.source, run.train.order
    num_held_out = run.valid.order.num_samples if run.valid else 0
    summary = run.samples.summary
    return "\n".join(
        [
            f"start          {source.weights} ({source.plan.architecture.name})",
            *([f"adapters       {described_adapters(run.flags.lora, source.plan)}"] if run.flags.lora else []),
            f"resumes from   {args.load or 'nothing'}",
            f"chat template  {run.encoder.template.name}",
            f"samples        {order.num_samples:,} to train on, {num_held_out:,} held out",
            *([run.flags.files_left_out] if run.flags.files_left_out else []),
            *_counted("not used", summary["rejects"], _REASONS),
            *_counted("noted", summary["notes"], NOTES),
            f"cache          {run.cache or 'none: give --save or --data-cache-path to encode once for all starts'}",
            f"batches        {order.num_batches:,} of {order.global_batch_size:,} samples, {order.epochs} epochs",
            f"rows           {_rows(run)}",
            f"layout         {describe_layout(run.flags.sizes, args)}",
            f"checkpoints    {args.save or 'none: give --save DIR to keep the result'}",
        ]
    )


def _counted(title: str, counts: Mapping[str, int], explained: Mapping[str, str]) -> list[str]:
    """A line for each name, with how often it occurred and what it means."""
    return [
        f"{title:<15}{count:,} {name}" + (f" ({explained[name]})" if name in explained else "")
        for name, count in sorted(counts.items())
    ]


def _rows(run: AlignmentRun) -> str:
    fill = run.train.fill(_MOST_BATCHES)
    shape = run.train.shape
    of_first = run.train.num_microbatches(0) * shape.micro_batch_size * shape.data_parallel_size
    balance = f", {fill.balance:.0%} balanced over the ranks" if shape.data_parallel_size > 1 else ""
    return (
        f"{of_first:,} in the first batch, of at most {shape.row_length:,} tokens, {fill.filled:.0%} full"
        f"{balance}, {len(fill.lengths)} different lengths"
    )

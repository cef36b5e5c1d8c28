"""What a run of SFT or DPO is about to do, in a few lines: printed before training, and all that ``--dry-run`` does."""

from megatron_mixcpt.data.chat.encoding import REFUSALS
from megatron_mixcpt.data.datasets.packed_rows import num_positions
from megatron_mixcpt.training.alignment.arguments import AlignmentRun


def describe(run: AlignmentRun) -> str:
    """The model, the samples, the batches and the layout as lines of text."""
    args, batches = run.args, run.train.batches
    num_train = len(run.samples) - run.num_held_out
    filled = run.config.epochs * sum(map(num_positions, run.samples[:num_train])) / (len(run.train) * args.seq_length)
    sizes = run.sizes
    refused = "".join(f"; {count:,} not used: {REFUSALS[reason]}" for reason, count in sorted(run.refused.items()))
    return "\n".join(
        [
            f"start          {run.source.weights} ({run.source.plan.architecture.name})",
            f"resumes from   {args.load or 'nothing'}",
            f"chat template  {run.encoder.template.name}",
            f"samples        {num_train:,} to train on, {run.num_held_out:,} held out{refused}",
            f"batches        {batches.num_batches:,} of {run.global_batch_size:,} samples, {run.config.epochs} epochs",
            f"rows           {batches.num_rows:,} a batch, of {args.seq_length:,} tokens, {filled:.0%} full",
            f"layout         TP {sizes.tensor} x PP {sizes.pipeline} x DP {sizes.data}"
            f" = {args.world_size} ranks, {str(args.params_dtype).removeprefix('torch.')}",
            f"checkpoints    {args.save or 'none: give --save DIR to keep the result'}",
        ]
    )

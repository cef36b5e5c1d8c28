"""What a run is about to do, in a few lines: printed before training starts, and all that ``--dry-run`` does."""

import argparse

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.conversion.context_length import canonical
from megatron_mixcpt.data.tokens.end_of_document import eos_warning
from megatron_mixcpt.objective import Objective
from megatron_mixcpt.training.engine.console import describe_layout
from megatron_mixcpt.training.lora.summary import described_adapters
from megatron_mixcpt.training.pretraining.arguments import Run

_METHODS = {
    "lssd": "logit swap self-distillation",
    "kd": "distillation without the swap",
    "l2": "distance to the original weights",
    "none": "none",
}


def _method(objective: Objective) -> str:
    method = _METHODS[objective.distillation]
    if objective.runs_teacher:
        divergence = objective.divergence
        method += f", alpha {objective.alpha:g}, {objective.distillation_fraction:.0%} of the samples"
        method += f", {divergence.direction} KL at temperature {divergence.temperature:g}"
    elif objective.anchors_weights:
        method += f", coefficient {objective.l2_coefficient:g}"
    return method


def _loss(config: MixCPTConfig) -> str:
    if config.loss_chunk_tokens:
        return f"in chunks of {config.loss_chunk_tokens:,} tokens, straight from the hidden states"
    return "from all logits of a microbatch at once"


def _masking(args: argparse.Namespace) -> str:
    return ", attention and positions within documents" if args.dataloader_inter_document_masking else ""


def _validation(args: argparse.Namespace) -> str:
    steps = f"every {args.eval_interval:,} steps (--split {args.split})"
    if args.full_validation:
        return f"all of {', '.join(args.validation_set_names)}, before the first step and {steps}"
    if args.eval_iters:
        return f"{args.eval_iters} batches of held-out samples {steps}"
    return "none: --split 99,1,0 holds samples out, --validation NAME=PATH names more"


def _microbatches(run: Run) -> str:
    micro = run.args.micro_batch_size
    number = run.args.global_batch_size // (micro * run.sizes.data)
    return f"{number:,} microbatch{'es' * (number > 1)} of {micro:,} on each rank"


def _documents(run: Run) -> list[str]:
    """What begins and ends documents; a warning where the model's settings say something else."""
    tokenizer = run.manifest.tokenizer
    warning = eos_warning(run.student.folder, tokenizer.eos_token, tokenizer.eos_id)
    return [
        f"documents      begin with {'no BOS' if tokenizer.bos_id is None else f'token {tokenizer.bos_id} (BOS)'}, "
        f"end with {tokenizer.eos_token!r} (id {tokenizer.eos_id})",
        *([f"warning: {warning}"] if warning else []),
    ]


def _context(run: Run) -> list[str]:
    """A context that is lengthened; a warning where sequences are longer than the teacher's."""
    length, teacher = run.args.seq_length, run.teacher.engine_arguments["max_position_embeddings"]
    positions = run.student.engine_arguments["max_position_embeddings"]
    scaled = f"context        {positions:,} tokens, by {canonical(run.student)}"
    warning = (
        f"warning: sequences of {length:,} tokens are longer than the teacher's {teacher:,} positions, and what it "
        "predicts beyond them is of little use (docs/how-to/lengthen-context.md)"
    )
    too_long = run.config.objective.runs_teacher and length > teacher
    return [scaled] * bool(run.config.rope_scaling) + [warning] * too_long


def describe(run: Run) -> str:
    """The models, the method, the layout and the mixture's plan as lines of text."""
    args, config, student = run.args, run.config, run.student
    weights = f"{args.num_layers} layers, hidden size {args.hidden_size}, vocabulary {student.vocab_size:,}"
    teacher = str(run.teacher.folder) if config.objective.holds_teacher else "not needed"
    teacher = "the student with its adapters off" if run.teaches_itself else teacher
    teacher += ", its layers in host memory" if config.teacher_offload == "cpu" else ""
    teacher += ", its layers in 8 bits" if config.teacher_fp8 else ""
    return "\n".join(
        [
            f"student        {student.folder} ({student.architecture.name}, {weights})",
            *([f"adapters       {described_adapters(run.lora, student)}"] if run.lora else []),
            f"teacher        {teacher}",
            f"distillation   {_method(config.objective)}",
            *_context(run),
            f"loss           {_loss(config)}",
            f"layout         {describe_layout(run.sizes, args)}",
            f"checkpoints    {args.save or 'none: give --save DIR to keep the result'}",
            f"mixture        {run.manifest.folder}{_masking(args)}",
            *(f"  {line}" for line in run.plan.table().splitlines()),
            *_documents(run),
            f"validation     {_validation(args)}",
            *(f"  {name:<12} {path}" for name, path in run.named_sets.items()),
            f"iterations     {args.train_iters or args.train_samples // args.global_batch_size:,}"
            f" of {args.global_batch_size:,} sequences, {_microbatches(run)}",
        ]
    )

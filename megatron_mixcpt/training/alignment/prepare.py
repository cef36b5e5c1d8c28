"""From checked flags to the rows that SFT and DPO train on: first the record is compared, then samples are encoded."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_mixcpt.config import AlignmentConfig, DPOConfig
from megatron_mixcpt.data.chat.encoding import ChatEncoder
from megatron_mixcpt.data.datasets.encoded_samples import EncodedSamples
from megatron_mixcpt.data.datasets.packing import BatchOrder
from megatron_mixcpt.data.datasets.row_plan import RowPlan
from megatron_mixcpt.data.reading.reading_settings import listed_counts
from megatron_mixcpt.data.reading.record_settings import described_kind
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.agreement import Agreement, agreement
from megatron_mixcpt.training.alignment.arguments import AlignmentFlags
from megatron_mixcpt.training.alignment.sample_cache import cached_samples
from megatron_mixcpt.training.alignment.sample_recipe import SampleRecipe
from megatron_mixcpt.training.alignment.template_date import IN_RECORD, keep_date
from megatron_mixcpt.training.engine.run_record import build_record, check_resumes, files_digest
from megatron_mixcpt.training.lora.record import adapters_record


@dataclass(frozen=True)
class AlignmentRun[Config: AlignmentConfig]:
    """What a run of SFT or DPO was asked to do, all checked against one another, and its samples."""

    flags: AlignmentFlags[Config]
    recipe: SampleRecipe
    samples: EncodedSamples
    cache: Path | None
    """Folder of what belongs to these samples; None: nothing of it is kept."""
    train: RowPlan
    valid: RowPlan | None
    """All held-out samples, as one batch."""

    @property
    def args(self) -> Any:
        """The engine's arguments."""
        return self.flags.args

    @property
    def config(self) -> Config:
        """Settings of the stage."""
        return self.flags.config

    @property
    def encoder(self) -> ChatEncoder:
        """Tokenizer and chat template."""
        return self.recipe.encoder


def prepare_run[Config: AlignmentConfig](flags: AlignmentFlags[Config]) -> AlignmentRun[Config]:
    """Compare the run with the checkpoint that it resumes from, and open its samples. Every rank must call.

    Raises:
        MixCPTError: what the user can correct, in one line.
    """
    args, config = flags.args, flags.config
    with agreement() as ranks:
        recipe = _agreed_recipe(flags, ranks)
        record = build_record(args, config, _contents(flags, recipe))
        architecture = flags.source.plan.engine_arguments
        check_resumes(args, flags.resumed, record, architecture, allow=config.resume_with_changes)
        samples, cache = cached_samples(recipe, flags.cache, _num_workers(config), ranks)
    held_out = samples.held_out(config.held_out)
    train, valid = _row_plans(flags, samples, held_out)
    _set_length(args, train.order.num_batches, validates=valid is not None)
    return AlignmentRun(flags, recipe, samples, cache, train, valid)


def _num_workers(config: AlignmentConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _agreed_recipe(flags: AlignmentFlags, ranks: Agreement) -> SampleRecipe:
    """The recipe with the digests of the sources and the template's date, as the first rank has them."""

    def of_first_rank() -> tuple[tuple[str, ...], Any]:
        try:
            digests = flags.recipe.with_digests().source_digests
            if not flags.config.dry_run:
                keep_date(flags.recipe.encoder.template, flags.args.save)
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from error
        return digests, flags.recipe.encoder.template

    digests, template = ranks.from_first(of_first_rank)
    encoder = flags.recipe.encoder
    encoder.template = template
    return replace(flags.recipe, source_digests=digests, encoder=encoder)


def _contents(flags: AlignmentFlags, recipe: SampleRecipe) -> dict[str, Any]:
    """What SFT and DPO train on, beyond their flags; see ``engine/run_record.py``."""
    template = recipe.encoder.template
    weights = [path for path in flags.source.weights.iterdir() if path.suffix in (".safetensors", ".distcp")]
    return {
        **described_kind(recipe.kind, recipe.records),
        "the files": [digest[:16] for digest in recipe.source_digests],
        "the chat template": template.digest[:16],
        **({IN_RECORD: template.now} if template.uses_date else {}),
        "the samples": recipe.digest,
        **adapters_record(flags.lora, flags.source.plan, flags.config.lora.lora_adapter),
        # SFT that resumes needs the model that it started from no more.
        **({"the reference": files_digest(weights)} if isinstance(flags.config, DPOConfig) else {}),
    }


def _row_plans(flags: AlignmentFlags, samples: EncodedSamples, held_out: np.ndarray) -> tuple[RowPlan, RowPlan | None]:
    num_held_out = int(held_out.sum())
    if num_held_out == len(samples):
        raise DataError(_no_sample(flags.config, samples))
    train = BatchOrder(
        np.flatnonzero(~held_out) if num_held_out else len(samples),
        global_batch_size=flags.args.global_batch_size,
        epochs=flags.config.epochs,
        seed=flags.args.seed,
    )
    valid = BatchOrder(np.flatnonzero(held_out), global_batch_size=max(num_held_out, 1), epochs=1, seed=0)
    shape = flags.shape
    per_step = flags.args.eval_global_batch_size // shape.data_parallel_size
    # As one step of an evaluation takes so many microbatches of a row each.
    valid_shape = replace(shape, micro_batch_size=1, microbatches_multiple=per_step, packing=True)
    return RowPlan(samples, train, shape), RowPlan(samples, valid, valid_shape) if num_held_out else None


def _no_sample(config: AlignmentConfig, samples: EncodedSamples) -> str:
    reasons = listed_counts(samples.summary["rejects"]) or "no record"
    held_out = f", {len(samples)} held out" if len(samples) else ""
    paths = " ".join(config.data)
    return f"{paths}: no sample to train on ({reasons}{held_out}); give others, or a longer --seq-length"


def _set_length(args: Any, num_batches: int, *, validates: bool) -> None:
    """Tell the engine how long the run is, which was not known when it read its flags. Changes ``args``."""
    args.train_iters = num_batches
    if not validates:
        args.eval_iters, args.full_validation, args.multiple_validation_sets = 0, False, False
    warmup, decay = args.lr_warmup_iters, args.lr_decay_iters or num_batches
    if warmup and warmup >= decay:
        raise ConfigError(
            f"--lr-warmup-iters {warmup}: the learning rate decays over {decay} iterations, which --epochs and "
            "--global-batch-size make of the samples; give fewer, or --lr-warmup-fraction"
        )

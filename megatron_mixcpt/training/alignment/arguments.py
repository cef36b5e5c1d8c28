"""From the command line of SFT and DPO to the engine's arguments and the rows that they train on.

The model comes from ``--hf-model`` or, weights only, from ``--load``; training resumes from ``--save`` where that has a
checkpoint. A global batch is ``--global-batch-size`` samples, which to the engine are as many rows as they take.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core.datasets.utils import Split
from tqdm import tqdm

from megatron_mixcpt.config import AlignmentConfig, DPOConfig
from megatron_mixcpt.conversion.hf_model_folder import refuse_contradictions
from megatron_mixcpt.data.chat.encoding import ChatEncoder, Refusal
from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.data.datasets.packed_rows import PackedRows, Sample, num_positions
from megatron_mixcpt.data.datasets.packing import PackedBatches, pack_batches
from megatron_mixcpt.data.reading.readers import read_records
from megatron_mixcpt.data.records import Record
from megatron_mixcpt.data.sample_id import sample_id
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.flags import settings_from
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.parallel_sizes import ParallelSizes, check_layout
from megatron_mixcpt.training.engine.arguments import (
    check_packed_rows,
    check_vocabulary,
    engine_defaults,
    explicit_arguments,
    parallel_sizes,
    parse_engine_args,
    refuse_decided,
    without_flags,
)
from megatron_mixcpt.training.engine.checkpoints import resumable
from megatron_mixcpt.training.engine.run_record import build_record, check_resumes, files_digest
from megatron_mixcpt.training.engine.transformer_engine import check_transformer_engine
from megatron_mixcpt.training.engine.whole_validation import validation_settings

# The paper's settings of format alignment (appendix), where they do not depend on the model.
RECIPE_DEFAULTS: dict[str, Any] = {
    "seq_length": 2048,
    "micro_batch_size": 1,
    "global_batch_size": 128,
    "lr_decay_style": "cosine",
    "lr_warmup_fraction": 0.1,
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "eval_interval": 50,
    "save_interval": 1000,
    "log_interval": 1,
    "sft": False,
}
DECIDED_ELSEWHERE = {
    "data_path": "--sft or --dpo names the data",
    "split": "--held-out says what is held out",
    "train_iters": "--epochs and --global-batch-size decide it",
    "train_samples": "--epochs decides it",
    "eval_iters": "every held-out sample is measured",
    "tokenizer_type": "the tokenizer is the model's",
    "tokenizer_model": "the tokenizer is the model's",
    "pretrained_checkpoint": "--load names the checkpoint to start from, --save the one to resume",
    "dataloader_inter_document_masking": "every sample attends to itself alone",
}


@dataclass(frozen=True)
class AlignmentRun[Config: AlignmentConfig]:
    """What a run of SFT or DPO was asked to do, all checked against one another."""

    args: argparse.Namespace
    config: Config
    sizes: ParallelSizes
    source: ModelSource
    encoder: ChatEncoder
    samples: list[Sample]
    """The training samples, then the held-out ones."""
    sample_ids: list[str]
    """The id of each, see ``data/sample_id.py``."""
    num_held_out: int
    global_batch_size: int
    """Samples of a batch; ``args.global_batch_size`` is its rows."""
    train: PackedRows
    valid: PackedRows | None
    refused: Counter[str]
    """How many records gave no sample, by reason."""


type Encode[R: Record] = Callable[[ChatEncoder, R], Sample | Refusal]
"""Makes a record a sample, or says why not."""


def parse_alignment_run[Config: AlignmentConfig, R: Record](
    argv: Sequence[str],
    config_class: type[Config],
    *,
    kind: str,
    encode: Encode[R],
    defaults: dict[str, Any],
) -> AlignmentRun[Config]:
    """Read the command line, the model's settings and the samples, and set the engine's global arguments.

    Args:
        argv: the command line.
        config_class: settings of the stage.
        kind: ``sft`` or ``dpo``, the kind of record.
        encode: makes a record of that kind a sample.
        defaults: engine arguments of the stage that hold unless a flag says otherwise.

    Raises:
        MixCPTError: what the user can correct, in one line.
    """
    explicit = explicit_arguments(argv, config_class)
    config = settings_from(explicit, config_class)
    refuse_decided(explicit, DECIDED_ELSEWHERE)
    source = _open_source(config, explicit)
    refuse_contradictions(explicit, source.plan)
    tokenizer = load_tokenizer(source.plan.folder)
    check_vocabulary(source.plan, len(tokenizer))
    settings = RECIPE_DEFAULTS | defaults | engine_defaults(source.plan, tokenizer.eos_token_id) | explicit
    check_transformer_engine(explicit, settings)
    if kind == "dpo" and settings.get("fp8"):
        raise ConfigError(
            f"--fp8-format {settings['fp8']}: DPO compares the policy's log-probabilities with the reference's, which "
            "the rounding of one of the two would bias; remove it"
        )
    sizes = parallel_sizes(settings)
    _check_layout(sizes, settings)
    encoder = ChatEncoder(tokenizer, choose_template(tokenizer, config.chat_template), settings["seq_length"])
    train, held_out, refused = _read_samples(config, kind, encode, encoder)
    ids, samples = [name for name, _ in train + held_out], [sample for _, sample in train + held_out]
    batches = _pack(config, samples[: len(train)], settings, sizes)
    rows = _rows(samples, batches, encoder, settings, Split.train)
    valid = _held_out_rows(len(train), samples, encoder, settings) if held_out else None
    resumed = resumable(settings.get("save"), settings.get("ckpt_step"))
    engine_settings = settings | _engine_batches(batches, valid is not None, sizes)
    engine_settings["load"] = settings["save"] if resumed else None
    args = parse_engine_args(without_flags(argv, ("--load", "--global-batch-size")), config_class, engine_settings)
    record = build_record(args, config, _contents(config, settings, source, batches, samples))
    check_resumes(args, resumed, record, source.plan.engine_arguments, allow=config.resume_with_changes)
    size = settings["global_batch_size"]
    return AlignmentRun(args, config, sizes, source, encoder, samples, ids, len(held_out), size, rows, valid, refused)


def _open_source(config: AlignmentConfig, explicit: dict[str, Any]) -> ModelSource:
    load, save = explicit.get("load"), explicit.get("save")
    if load and save and Path(load).resolve() == Path(save).resolve():
        raise ConfigError(f"--load and --save are both {load}: the model to start from would be overwritten")
    return ModelSource.open(
        hf_model=Path(config.hf_model) if config.hf_model else None, load=Path(load) if load else None
    )


def _check_layout(sizes: ParallelSizes, settings: dict[str, Any]) -> None:
    if sizes.context > 1:
        raise ConfigError(
            f"--context-parallel-size {sizes.context} is not used here, because samples are not split over ranks; use "
            "--tensor-model-parallel-size or --pipeline-model-parallel-size for large models"
        )
    check_layout(sizes, settings)
    check_packed_rows(settings)


def _read_samples(
    config: AlignmentConfig, kind: str, encode: Encode[Any], encoder: ChatEncoder
) -> tuple[list[tuple[str, Sample]], list[tuple[str, Sample]], Counter[str]]:
    """Samples to train on and samples held out, each with its id, and how many records gave none."""
    train: list[tuple[str, Sample]] = []
    held_out: list[tuple[str, Sample]] = []
    refused: Counter[str] = Counter()
    below = round(config.held_out * 2**32)
    for record in tqdm(read_records(kind, config.data), desc="encode", unit="sample", disable=None, mininterval=1):
        sample = encode(encoder, record)
        if isinstance(sample, Refusal):
            refused[sample.reason] += 1
            continue
        name = sample_id(record)
        (held_out if int(name[:8], 16) < below else train).append((name, sample))
    if not train:
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.items()) or "no record"
        paths = " ".join(config.data)
        raise DataError(f"{paths}: no sample to train on ({reasons}); give others, or a longer --seq-length")
    return train, held_out, refused


def _pack(
    config: AlignmentConfig, samples: list[Sample], settings: dict[str, Any], sizes: ParallelSizes
) -> PackedBatches:
    return pack_batches(
        [num_positions(sample) for sample in samples],
        row_length=settings["seq_length"],
        global_batch_size=settings["global_batch_size"],
        epochs=config.epochs,
        seed=settings.get("seed", 1234),
        packing=config.packing,
        rows_multiple=settings["micro_batch_size"] * sizes.data * sizes.microbatches_multiple,
    )


def _rows(
    samples: list[Sample], batches: PackedBatches, encoder: ChatEncoder, settings: dict[str, Any], split: Split
) -> PackedRows:
    return PackedRows(samples, batches, settings["seq_length"], pad_id=encoder.eos_id, split=split)


def _held_out_rows(start: int, samples: list[Sample], encoder: ChatEncoder, settings: dict[str, Any]) -> PackedRows:
    """The samples from ``start`` on, once, as rows of one great batch."""
    lengths = [num_positions(sample) for sample in samples[start:]]
    shape = {"row_length": settings["seq_length"], "global_batch_size": len(lengths), "epochs": 1, "seed": 0}
    batches = pack_batches(lengths, packing=True, **shape)
    moved = tuple(tuple(tuple(index + start for index in row) for row in batch) for batch in batches.batches)
    return _rows(samples, PackedBatches(batches.num_rows, moved), encoder, settings, Split.valid)


def _engine_batches(batches: PackedBatches, validates: bool, sizes: ParallelSizes) -> dict[str, Any]:
    """The run in the engine's terms: its samples are our rows."""
    validation = validation_settings(["held-out"], pipeline_size=sizes.pipeline, data_parallel_size=sizes.data)
    return {
        "global_batch_size": batches.num_rows,
        "train_iters": batches.num_batches,
        **(validation if validates else {"eval_iters": 0}),  # the engine would make a missing set up
    }


def _contents(
    config: AlignmentConfig,
    settings: dict[str, Any],
    source: ModelSource,
    batches: PackedBatches,
    samples: list[Sample],
) -> dict[str, Any]:
    """What SFT and DPO train on, beyond their flags; see ``engine/run_record.py``."""
    digest = hashlib.sha256()
    for document in (document for sample in samples for document in sample):
        digest.update(document.tokens.tobytes() + document.loss_mask.tobytes())
    weights = [path for path in source.weights.iterdir() if path.suffix in (".safetensors", ".distcp")]
    return {
        "--global-batch-size": settings["global_batch_size"],
        "rows in a batch": batches.num_rows,
        "the samples": digest.hexdigest()[:16],
        # SFT that resumes needs the model that it started from no more.
        **({"the reference": files_digest(weights)} if isinstance(config, DPOConfig) else {}),
    }

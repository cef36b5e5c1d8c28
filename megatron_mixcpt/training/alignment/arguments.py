"""From the command line of SFT and DPO to the engine's arguments: all that is checked before any sample is encoded.

The model comes from ``--hf-model`` or, weights only, from ``--load``; training resumes from ``--save`` where that has a
checkpoint.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.config import AlignmentConfig, SFTConfig
from megatron_mixcpt.conversion.hf_model_folder import refuse_contradictions
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.data.chat.encoding import ChatEncoder
from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.data.datasets.packing import RowShape, length_step
from megatron_mixcpt.data.reading.record_flags import record_settings
from megatron_mixcpt.data.reading.sources import find_files
from megatron_mixcpt.data.tokens.identity import definition_digest
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import ConfigError, nearest_multiples
from megatron_mixcpt.flags import settings_from
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.parallel_sizes import ParallelSizes
from megatron_mixcpt.training.alignment.sample_recipe import SampleRecipe
from megatron_mixcpt.training.alignment.template_date import date_of_first_start
from megatron_mixcpt.training.document_lengths import check_document_lengths
from megatron_mixcpt.training.engine.arguments import (
    check_packed_rows,
    check_vocabulary,
    checked_sizes,
    engine_defaults,
    explicit_arguments,
    merge_settings,
    parse_engine_args,
    refuse_decided,
    refuse_foreign_architecture,
    without_flags,
)
from megatron_mixcpt.training.engine.checkpoints import resumable
from megatron_mixcpt.training.engine.decided_flags import DECIDED_IN_ALIGNMENT
from megatron_mixcpt.training.engine.transformer_engine import check_transformer_engine
from megatron_mixcpt.training.engine.whole_validation import validation_settings
from megatron_mixcpt.training.expert_flags import check_experts
from megatron_mixcpt.training.lora.run_settings import (
    as_settings,
    check_adapters_in,
    check_lora,
    resolved_lora,
    tenfold,
)

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


@dataclass(frozen=True)
class AlignmentFlags[Config: AlignmentConfig]:
    """A command line of SFT or DPO, all checked that can be without the samples."""

    args: argparse.Namespace
    """The engine's. Its batches are ``--global-batch-size`` samples of one row each; what is handed to its schedule is
    another matter (``batch_steps.py``). ``train_iters`` is not known yet."""
    config: Config
    sizes: ParallelSizes
    source: ModelSource
    lora: LoRASettings | None
    """Adapters that are trained in the place of the model; None: the model is."""
    recipe: SampleRecipe
    """Without digests of the sources."""
    files_left_out: str
    """A line about files whose names say that they are for testing; empty where there are none."""
    shape: RowShape
    resumed: MegatronCheckpoint | None
    """The checkpoint in ``--save``."""

    @property
    def cache(self) -> Path | None:
        """Folder of encoded samples; None: none that lasts."""
        given = self.args.data_cache_path or (self.args.save and os.path.join(self.args.save, "cache"))
        return Path(given) if given else None


def parse_alignment_flags[Config: AlignmentConfig](
    argv: Sequence[str], config_class: type[Config], defaults: dict[str, Any]
) -> AlignmentFlags[Config]:
    """Read the command line and the model's settings, and set the engine's global arguments.

    Args:
        argv: the command line.
        config_class: settings of the stage.
        defaults: engine arguments of the stage that hold unless a flag says otherwise.

    Raises:
        MixCPTError: what the user can correct, in one line.
    """
    explicit = explicit_arguments(argv, config_class)
    config = settings_from(explicit, config_class)
    refuse_decided(explicit, DECIDED_IN_ALIGNMENT)
    source = _open_source(config, explicit)
    refuse_contradictions(explicit, source.plan)
    refuse_foreign_architecture(explicit, source.plan)
    tokenizer = load_tokenizer(source.plan.folder)
    check_vocabulary(source.plan, len(tokenizer))
    lora = resolved_lora(config.lora, source.plan)
    stage = tenfold(defaults) if lora else defaults
    settings = merge_settings(RECIPE_DEFAULTS | stage | engine_defaults(source.plan, tokenizer.eos_token_id), explicit)
    if lora:
        check_lora(lora, source.plan, settings)
        settings |= as_settings(lora)
    check_transformer_engine(explicit, settings)
    check_experts(settings)
    _check_precision(config, settings)
    sizes = checked_sizes(settings)
    _check_samples_layout(sizes, settings)
    reason = f"--{config.kind}, whose samples have any length"
    check_document_lengths(source.plan.options, source.plan.folder, settings["seq_length"], reason)
    resumed = resumable(settings.get("save"), settings.get("ckpt_step"))
    check_adapters_in(resumed, trains_adapters=lora is not None)
    template = choose_template(tokenizer, config.chat_template, date_of_first_start(resumed, settings.get("save")))
    files = find_files(config.kind, config.data, config.reading.include_held_out_splits)
    recipe = SampleRecipe(
        kind=config.kind,
        records=record_settings(config.kind, argparse.Namespace(**explicit | {config.kind: config.data})),
        reading=config.reading,
        sources=tuple(files.sources),
        tokenizer_digest=_tokenizer_digest(tokenizer),
        encoder=ChatEncoder(tokenizer, template, settings["seq_length"]),
        supervise=config.supervise if isinstance(config, SFTConfig) else "all",
    )
    args = _engine_args(argv, config_class, settings, sizes, config, resumed)
    left_out = files.describe_held_out(f"--{config.kind}")
    shape = _row_shape(config, settings, sizes)
    return AlignmentFlags(args, config, sizes, source, lora, recipe, left_out, shape, resumed)


def _open_source(config: AlignmentConfig, explicit: dict[str, Any]) -> ModelSource:
    load, save = explicit.get("load"), explicit.get("save")
    if load and config.lora.is_given:
        raise ConfigError(
            f"--load {load} with --lora-rank: adapters belong to the weights of a Hugging Face folder; export the "
            "checkpoint with tools/convert_to_hf.py and give that as --hf-model"
        )
    if load and save and Path(load).resolve() == Path(save).resolve():
        raise ConfigError(f"--load and --save are both {load}: the model to start from would be overwritten")
    return ModelSource.open(
        hf_model=Path(config.hf_model) if config.hf_model else None, load=Path(load) if load else None
    )


def _check_precision(config: AlignmentConfig, settings: dict[str, Any]) -> None:
    if config.kind == "dpo" and settings.get("fp8"):
        raise ConfigError(
            f"--fp8-format {settings['fp8']}: DPO compares the policy's log-probabilities with the reference's, which "
            "the rounding of one of the two would bias; remove it"
        )


def _check_samples_layout(sizes: ParallelSizes, settings: dict[str, Any]) -> None:
    check_packed_rows(settings, "SFT and DPO, whose rows hold several documents,")
    if (batch := settings["global_batch_size"]) % sizes.data:
        choose = nearest_multiples(batch, sizes.data)
        raise ConfigError(
            f"--global-batch-size {batch} is not a multiple of the {sizes.data} copies of the model (data parallel): "
            f"choose {choose}"
        )


def _row_shape(config: AlignmentConfig, settings: dict[str, Any], sizes: ParallelSizes) -> RowShape:
    """What this layout asks of rows: 8-bit kernels want multiples of 16 tokens on each rank."""
    of_rank = (sizes.tensor if settings.get("sequence_parallel") else 1) * (16 if settings.get("fp8") else 1)
    return RowShape(
        row_length=settings["seq_length"],
        micro_batch_size=settings["micro_batch_size"],
        data_parallel_size=sizes.data,
        microbatches_multiple=sizes.microbatch_group,
        length_step=length_step(settings["seq_length"], sizes.length_multiple(of_rank)),
        is_uniform=sizes.pipeline > 1,
        packing=config.packing,
    )


def _engine_args(
    argv: Sequence[str],
    config_class: type[AlignmentConfig],
    settings: dict[str, Any],
    sizes: ParallelSizes,
    config: AlignmentConfig,
    resumed: MegatronCheckpoint | None,
) -> argparse.Namespace:
    """The engine's arguments, in which a sample is a row: it then counts samples, whatever rows they lie in."""
    validation = validation_settings(["held-out"], sizes)
    engine_settings = settings | {
        "micro_batch_size": 1,
        "train_iters": 1,
        "dataloader_type": "external",
        "load": settings["save"] if resumed else None,
        **(validation if config.held_out else {"eval_iters": 0}),  # the engine would make a missing set up
    }
    return parse_engine_args(without_flags(argv, ("--load", "--micro-batch-size")), config_class, engine_settings)


def _tokenizer_digest(tokenizer: Any) -> str:
    """Of what decides token ids, and of what other settings decide: special tokens and the end of sequence."""
    special = sorted((number, token.content, token.special) for number, token in tokenizer.added_tokens_decoder.items())
    of_ids = definition_digest(tokenizer.backend_tokenizer.to_str())
    content = json.dumps([of_ids, tokenizer.eos_token_id, special])
    return hashlib.sha256(content.encode("utf-8")).hexdigest()

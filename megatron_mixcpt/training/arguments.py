"""From the command line to the engine's arguments: Megatron's flags, ours, and what the model and the mixture decide.

A flag is either the user's, and then it holds or is refused, or it is filled in: the architecture from the Hugging Face
folder, the length of the run from the mixture, the rest from the paper's settings.
"""

import argparse
import contextlib
import io
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.training.argument_utils import ArgumentGroupFactory
from megatron.training.arguments import add_megatron_arguments, parse_and_validate_args

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.conversion.hf_config import FREE_ARGUMENTS
from megatron_mixcpt.conversion.model_folder import HFModel, read_model_folder, refuse_contradictions
from megatron_mixcpt.data.manifest import MixtureManifest
from megatron_mixcpt.data.mixture import MixturePlan, parse_epochs, parse_kind_values, plan_mixture, split_fractions
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.training.validation import validation_settings

# What holds unless a flag says otherwise. Learning rates and sequence length are the paper's (section 3.1).
RECIPE_DEFAULTS = {
    "seq_length": 2048,
    "micro_batch_size": 1,
    "lr": 2e-5,
    "min_lr": 5e-6,
    "lr_decay_style": "cosine",
    "split": "100,0,0",
    "eval_interval": 1000,
    "eval_iters": 10,
    "save_interval": 1000,
    "log_interval": 10,
    # A checkpoint then resumes at any TP x PP, not only at another number of data parallel ranks.
    "dist_ckpt_optim_fully_reshardable": True,
}


# Engine flags that something else decides here; taking them silently would train on something else than was asked for.
DECIDED_ELSEWHERE = {
    "data_path": "--mixture names the data",
    "train_data_path": "--mixture names the data",
    "valid_data_path": "--mixture names the data, and --split what is held out",
    "tokenizer_type": "the mixture holds tokens already, and --hf-model their tokenizer",
    "tokenizer_model": "the mixture holds tokens already, and --hf-model their tokenizer",
    "full_validation": "held-out samples (--split) are measured whole unless --eval-iters says how many batches",
    "multiple_validation_sets": "each kind's held-out samples (--split) are a set unless --eval-iters is given",
    "reset_attention_mask": "--document-masking keeps attention within documents",
}


@dataclass(frozen=True)
class Run:
    """What a run was asked to do, all checked against one another."""

    args: argparse.Namespace
    config: MixCPTConfig
    student: HFModel
    teacher: HFModel
    manifest: MixtureManifest
    plan: MixturePlan


class _Parser(argparse.ArgumentParser):
    """Errors as one line: the engine's usage text has a thousand flags."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists every flag)")


def add_mixcpt_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags of :class:`MixCPTConfig` to the engine's; changes and returns ``parser``."""
    ArgumentGroupFactory(MixCPTConfig).build_group(parser, "knowledge mixture continual pre-training")
    return parser


def parse_run(argv: Sequence[str]) -> Run:
    """Read the command line, the model folders and the manifest, and set the engine's global arguments.

    Raises:
        MixCPTError: what the user can mend, in one line.
    """
    explicit = explicit_arguments(argv)
    names = {field.name for field in fields(MixCPTConfig)}
    config = MixCPTConfig(**{name: value for name, value in explicit.items() if name in names})
    for name in sorted(DECIDED_ELSEWHERE.keys() & explicit.keys()):
        raise ConfigError(f"--{name.replace('_', '-')} has no say here: {DECIDED_ELSEWHERE[name]}; leave the flag out")
    student = read_model_folder(config.hf_model)
    refuse_contradictions(explicit, student)
    manifest = MixtureManifest.load(config.mixture)
    _check_tokenizer(manifest, student)
    teacher = student
    if config.teacher:
        teacher = read_model_folder(config.teacher)
        _check_same_shape(student, teacher)
        _check_tokenizer(manifest, teacher)
    settings = RECIPE_DEFAULTS | engine_defaults(student, manifest) | explicit
    if config.document_masking:
        settings["dataloader_inter_document_masking"] = True  # the engine's datasets then reset the positions as well
    _check_world_size(settings)
    _check_packing(settings)
    _check_loss_in_chunks(config, settings)
    plan = plan_run(manifest, config, settings)
    if "train_iters" not in settings and "train_samples" not in settings:
        settings["train_iters"] = plan.train_iters(global_batch_size(settings))
    if split_fractions(settings["split"])[1] > 0.0 and "eval_iters" not in explicit:
        settings |= _whole_validation_sets(explicit, settings, manifest, plan)
    return Run(_engine_args(argv, settings), config, student, teacher, manifest, plan)


def explicit_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """The arguments that the command line gives, by destination, without any default."""
    parser = add_mixcpt_arguments(add_megatron_arguments(_Parser(allow_abbrev=False)))
    unset = object()
    blank = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), unset))
    return {name: value for name, value in vars(parser.parse_args(argv, blank)).items() if value is not unset}


def engine_defaults(model: HFModel, manifest: MixtureManifest) -> dict[str, Any]:
    """Engine arguments that follow from the model, the mixture's tokenizer and what this machine has installed."""
    return {
        **model.engine_arguments,
        # The data are tokens already: the engine needs the end of document and no padding token, for a padding
        # token that is the end of document, as in many tokenizers, would be masked out of the loss.
        "tokenizer_type": "NullTokenizer",
        "null_tokenizer_eod_id": manifest.tokenizer.eos_id,
        "transformer_impl": "transformer_engine" if HAVE_TE else "local",
        "calculate_per_token_loss": True,
        "perform_initialization": False,
        "enable_one_logger": False,
    } | ({} if HAVE_TE else _WITHOUT_FUSED_KERNELS)


_WITHOUT_FUSED_KERNELS = dict.fromkeys(
    ("gradient_accumulation_fusion", "masked_softmax_fusion", "apply_rope_fusion", "bias_dropout_fusion"), False
)


def plan_run(manifest: MixtureManifest, config: MixCPTConfig, settings: dict[str, Any]) -> MixturePlan:
    """How many sequences of each kind the run draws: ``--epochs``, or as many whole passes as the iterations need.

    ``--mixture-weights`` shares them out; without it the kinds keep the proportions of ``--epochs``.
    """
    epochs = parse_epochs(config.epochs)
    weights = parse_kind_values("--mixture-weights", config.mixture_weights) if config.mixture_weights else None
    shape = {"sequence_length": settings["seq_length"], "split": settings["split"], "weights": weights}
    plan = plan_mixture(manifest, epochs=epochs, **shape)
    if "train_iters" not in settings and "train_samples" not in settings:
        return plan
    needed = settings.get("train_samples") or settings["train_iters"] * global_batch_size(settings)
    once = dict.fromkeys(manifest.kinds, 1.0) | (epochs if isinstance(epochs, dict) else {})
    passes = 1
    while (plan := plan_mixture(manifest, epochs=_times(passes, once), **shape)).num_sequences < needed:
        passes = max(passes + 1, passes * needed // plan.num_sequences)
    return plan


def _times(factor: int, epochs: dict[str, float]) -> dict[str, float]:
    return {kind: factor * value for kind, value in epochs.items()}


def _whole_validation_sets(
    explicit: dict[str, Any], settings: dict[str, Any], manifest: MixtureManifest, plan: MixturePlan
) -> dict[str, Any]:
    """What makes each kind's held-out samples a validation set, unless ``--eval-iters`` asks for some of all kinds."""
    _, pipeline, _ = _model_sizes(settings)
    decided = validation_settings(
        manifest, plan, pipeline_size=pipeline, data_parallel_size=_world_size() // model_ranks(settings)
    )
    for name in sorted(decided.keys() & explicit.keys()):
        raise ConfigError(
            f"--{name.replace('_', '-')} has no say where whole validation sets are measured; leave it out, or give "
            "--eval-iters N to measure N batches of all kinds together"
        )
    return decided


def global_batch_size(settings: dict[str, Any]) -> int:
    """``--global-batch-size``, or one microbatch per data parallel rank, as in the engine."""
    return settings.get("global_batch_size") or settings["micro_batch_size"] * (_world_size() // model_ranks(settings))


def model_ranks(settings: dict[str, Any]) -> int:
    """Ranks that hold one copy of the model: TP x PP x CP."""
    return math.prod(_model_sizes(settings))


def _model_sizes(settings: dict[str, Any]) -> tuple[int, int, int]:
    """TP, PP and CP."""
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    return tuple(settings.get(name, 1) for name in names)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_world_size(settings: dict[str, Any]) -> None:
    if _world_size() % model_ranks(settings):
        tensor, pipeline, context = _model_sizes(settings)
        raise ConfigError(
            f"{_world_size()} ranks cannot hold whole copies of a model of {tensor} x {pipeline} x {context} = "
            f"{model_ranks(settings)} ranks (--tensor-model-parallel-size x --pipeline-model-parallel-size x "
            "--context-parallel-size): start a multiple of that many (torchrun --nproc-per-node, --nnodes)"
        )


def _check_packing(settings: dict[str, Any]) -> None:
    """Transformer Engine takes the boundaries of one sequence at a time."""
    packed = settings.get("dataloader_inter_document_masking") and settings["transformer_impl"] == "transformer_engine"
    if packed and settings["micro_batch_size"] > 1:
        raise ConfigError(
            f"--micro-batch-size {settings['micro_batch_size']} with --document-masking: Transformer Engine packs the "
            "documents of one sequence; give --micro-batch-size 1"
        )


def _check_loss_in_chunks(config: MixCPTConfig, settings: dict[str, Any]) -> None:
    """The fused loss computes the output weight's gradient itself, and once."""
    for name in ("defer_embedding_wgrad_compute", "use_megatron_fsdp"):
        if config.loss_chunk_tokens and settings.get(name):
            raise ConfigError(
                f"--loss-chunk-tokens {config.loss_chunk_tokens} with --{name.replace('_', '-')}: it needs the output "
                "layer's own gradient computation; leave one of the two out"
            )


def _check_same_shape(student: HFModel, teacher: HFModel) -> None:
    """Both models share one pipeline and one vocabulary: what the weights mean must be the same."""
    ours, theirs = student.engine_arguments, teacher.engine_arguments
    different = [name for name in ours if ours[name] != theirs.get(name) and name not in FREE_ARGUMENTS]
    if different:
        listed = ", ".join(f"{name} {theirs.get(name)} (--hf-model has {ours[name]})" for name in different)
        raise ConfigError(f"--teacher {teacher.folder} is another model: {listed}. Give a teacher of the same shape")


def _check_tokenizer(manifest: MixtureManifest, model: HFModel) -> None:
    """The mixture's tokens must be this model's, and it must have a row for each of them."""
    manifest.check_tokenizer(model.folder)
    if manifest.tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"{model.folder} has {model.vocab_size} embedding rows for a tokenizer of {manifest.tokenizer.vocab_size} "
            "tokens: resize the model's embeddings first"
        )


def _engine_args(argv: Sequence[str], settings: dict[str, Any]) -> argparse.Namespace:
    """Parse once more, by the engine itself, with everything that was filled in as defaults."""

    def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        add_mixcpt_arguments(parser).set_defaults(**_derived(settings))
        return parser

    sys.argv[1:] = argv
    # A dry run prints its own plan; the engine would list a thousand arguments.
    quiet = contextlib.redirect_stdout(io.StringIO()) if settings.get("dry_run") else contextlib.nullcontext()
    try:
        with quiet:
            return parse_and_validate_args(extra_args_provider=add_arguments)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"the engine refuses these flags: {error}") from error


def _derived(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` and what follows: no validation where nothing is held out, padding, where TensorBoard writes."""
    tensor, _, _ = _model_sizes(settings)
    derived = {"padded_vocab_size": -(-settings["vocab_size"] // tensor) * tensor}
    if split_fractions(settings["split"])[1] == 0.0:
        derived["eval_iters"] = 0  # the engine would take a missing dataset for one
    if settings.get("save") and not settings.get("tensorboard_dir"):
        derived["tensorboard_dir"] = os.path.join(settings["save"], "tensorboard")
    return settings | derived

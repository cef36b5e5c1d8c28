"""The engine's command line: what the user gave, what follows from the model, and the engine's own check of both.

Shared by every training entry; each adds the flags of its settings and its defaults.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.training.arguments import (
    add_megatron_arguments,
    core_transformer_config_from_args,
    parse_and_validate_args,
)

from megatron_mixcpt.conversion.hf_model_folder import ModelPlan
from megatron_mixcpt.data.reading.record_flags import add_record_flags
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import Parser, add_flags, repeated_flags
from megatron_mixcpt.parallel_sizes import ParallelSizes, check_layout
from megatron_mixcpt.training.engine.flag_table import OF_THE_MODEL, classes_of, engine_arguments, flag_of
from megatron_mixcpt.training.engine.refused_flags import REFUSED, REFUSED_VALUES
from megatron_mixcpt.training.layout_flags import check_layout_flags

Settings = Mapping[str, Any]
"""Engine arguments by destination: defaults, and over them what the command line says."""

_WITHOUT_FUSED_KERNELS = dict.fromkeys(("masked_softmax_fusion", "apply_rope_fusion", "bias_dropout_fusion"), False)
_STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
# Of Apex. The engine's linear layers, of which the output layer is one in any case, add weight gradients with it.
_GRADIENT_ACCUMULATION = "fused_weight_gradient_mlp_cuda"


class _Unset(list):
    """Stands for "not given". A list, because a flag that may be repeated adds its values to a copy of it."""


def _add_flags(parser: argparse.ArgumentParser, config_class: type) -> argparse.ArgumentParser:
    """Add the flags of a settings dataclass to the engine's; changes and returns ``parser``."""
    parser.conflict_handler = "resolve"  # the engine has an --sft too, a switch
    add_flags(parser, config_class, grouped=True)
    if kind := getattr(config_class, "kind", None):
        add_record_flags(parser, kind)
    return parser


@functools.cache
def _parser(config_class: type) -> argparse.ArgumentParser:
    """The engine's flags with those of a settings dataclass."""
    parser = add_megatron_arguments(Parser())
    for action in parser._actions:  # argparse has no public list of them
        # The engine takes some help from docstrings, where a percent sign stands for itself and not for a format.
        action.help = re.sub(r"%%|%(?!\()", "%%", action.help) if action.help else action.help
    return _add_flags(parser, config_class)


def explicit_arguments(argv: Sequence[str], config_class: type) -> dict[str, Any]:
    """The arguments that the command line gives, by destination, without any default.

    Args:
        argv: the command line.
        config_class: dataclass whose fields are flags beside the engine's.

    Raises:
        ConfigError: an unknown flag, a value of the wrong type, a flag of the engine that is refused, or one that
            nothing has decided about (``flag_table.py``).
    """
    parser = _parser(config_class)
    unset, defaults = _Unset(), vars(parser.parse_args([]))
    blank = argparse.Namespace(**dict.fromkeys(defaults, unset))
    given = {name: value for name, value in vars(parser.parse_args(argv, blank)).items() if value is not unset}
    _refuse_unsupported({name: value for name, value in given.items() if value != defaults[name]}, config_class)
    return given


def _refuse_unsupported(changed: Settings, config_class: type) -> None:
    """Raise ConfigError for a flag of the engine, with a value that is not its default, that does not hold here."""
    ours = {field.name for field in dataclasses.fields(config_class)}
    for name in sorted((changed.keys() & engine_arguments().keys()) - ours):
        if name in REFUSED:
            raise ConfigError(f"{flag_of(name)} is not supported ({REFUSED[name]}); remove it")
        for value in changed[name] if isinstance(changed[name], list) else [changed[name]]:
            if reason := REFUSED_VALUES.get(name, {}).get(str(value)):
                raise ConfigError(f"{flag_of(name)} {value} is not supported ({reason}); remove it")
        if not classes_of(name):
            raise ConfigError(
                f"{flag_of(name)} is new in this release of the engine and was never tried here; remove it"
            )


_ONE_OF = (
    ("lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_samples"),
    ("lr_decay_iters", "lr_decay_samples"),
    ("train_iters", "train_samples"),
    ("recompute_activations", "recompute_granularity"),
    ("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank"),
    ("fp16", "bf16"),
)
"""Arguments of which the engine takes one."""


def merge_settings(defaults: Settings, explicit: Settings) -> dict[str, Any]:
    """Our defaults, and over them what the command line says; a default yields to any flag that decides the same.

    Raises ConfigError where the command line has two flags that decide the same.
    """
    for group in _ONE_OF:
        given = [name for name in group if explicit.get(name)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(map(flag_of, given))} decide the same: give one of them")
    rivals = {name for group in _ONE_OF if explicit.keys() & set(group) for name in group}
    return {name: value for name, value in defaults.items() if name not in rivals} | dict(explicit)


def refuse_foreign_architecture(explicit: Settings, model: ModelPlan) -> None:
    """Raise ConfigError for a flag of an architecture that is not the model's, such as one of experts that it lacks."""
    for name in sorted(OF_THE_MODEL & explicit.keys() - model.engine_arguments.keys()):
        if explicit[name] != engine_arguments()[name].default:
            raise ConfigError(f"{flag_of(name)} is not used here ({model.folder} has nothing of the kind); remove it")
    if not model.engine_arguments["num_experts"]:
        for name in sorted(name for name in explicit if name.startswith("moe_")):
            if explicit[name] != engine_arguments()[name].default:
                raise ConfigError(f"{flag_of(name)} is not used here ({model.folder} has no experts); remove it")


def refuse_decided(explicit: Settings, decided: Mapping[str, str]) -> None:
    """Raise ConfigError for an explicit flag that something else decides; ``decided`` says what, by destination."""
    for name in sorted(decided.keys() & explicit.keys()):
        raise ConfigError(f"{flag_of(name)} is not used here ({decided[name]}); remove it")


def check_vocabulary(model: ModelPlan, num_tokens: int) -> None:
    """Raise ConfigError where the model lacks an embedding row for one of its tokenizer's ``num_tokens`` tokens."""
    if num_tokens > model.vocab_size:
        raise ConfigError(
            f"{model.folder} has {model.vocab_size} embedding rows for a tokenizer of {num_tokens} "
            "tokens: resize the model's embeddings first"
        )


def engine_defaults(model: ModelPlan, eos_id: int) -> dict[str, Any]:
    """Engine arguments that follow from the model, the data's end of document and what this machine has installed."""
    return {
        **model.engine_arguments,
        # The data are tokens already: the engine needs the end of document and no padding token, for a padding
        # token that is the end of document, as in many tokenizers, would be masked out of the loss.
        "tokenizer_type": "NullTokenizer",
        "null_tokenizer_eod_id": eos_id,
        "transformer_impl": "transformer_engine" if HAVE_TE else "local",
        "calculate_per_token_loss": True,
        "perform_initialization": False,
        "enable_one_logger": False,
        # A checkpoint then resumes at any TP x PP, not only at another number of data parallel ranks.
        "dist_ckpt_optim_fully_reshardable": True,
        "exit_signal_handler": True,
        # Without the first the engine switches --async-save off; the second's default is a package that few have.
        "use_persistent_ckpt_worker": True,
        "async_strategy": "mcore",
        # NaN and Inf stop the run at once. Running the step again would tell whether the device is at fault, but lets
        # the first step of a run pass unchecked.
        "rerun_mode": "disabled",
        "gradient_accumulation_fusion": _imports(_GRADIENT_ACCUMULATION),
        # Where routers have a bias that balances the experts: routing would drift from the teacher's.
        "moe_router_bias_update_rate": 0.0,
    } | ({} if HAVE_TE else _WITHOUT_FUSED_KERNELS)


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def parse_engine_args(argv: Sequence[str], config_class: type, settings: Settings) -> argparse.Namespace:
    """Parse once more, by the engine itself, with ``settings`` as defaults, and set the engine's global arguments.

    Raises:
        ConfigError: the engine refuses the flags.
    """

    def add_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        defaults = {**settings, **_derived(settings)}
        for repeated in repeated_flags(config_class):
            defaults.pop(repeated, None)  # their values are added to the default: they would be there twice
        _add_flags(parser, config_class).set_defaults(**defaults)
        return parser

    sys.argv[1:] = argv
    # A dry run prints its own plan; the engine would list a thousand arguments.
    quiet = contextlib.redirect_stdout(io.StringIO()) if settings.get("dry_run") else contextlib.nullcontext()
    with engine_refusals():
        with quiet, _world_size(num_ranks_of(settings)):
            args = parse_and_validate_args(extra_args_provider=add_flags)
        # What the layers are built from has checks of its own. The training makes it again once its ranks have joined.
        core_transformer_config_from_args(args)
    return args


@contextlib.contextmanager
def engine_refusals() -> Iterator[None]:
    """Raise ConfigError, in one line, for flags that the engine's own checks refuse."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        raise ConfigError(f"the engine refuses these flags: {reason}") from error


@contextlib.contextmanager
def _world_size(num_ranks: int) -> Iterator[None]:
    """Let the engine read that it runs on so many ranks."""
    started = os.environ.get("WORLD_SIZE", "1")
    os.environ["WORLD_SIZE"] = str(num_ranks)
    try:
        yield
    finally:
        os.environ["WORLD_SIZE"] = started


def without_flags(argv: Sequence[str], flags: Iterable[str]) -> list[str]:
    """``argv`` without these flags and their values, which are one each."""
    left, names, skip = [], tuple(flags), False
    for argument in argv:
        if not skip and not argument.startswith(tuple(f"{name}=" for name in names)) and argument not in names:
            left.append(argument)
        skip = argument in names
    return left


def _derived(settings: Settings) -> dict[str, Any]:
    """Padding of the vocabulary, where TensorBoard writes, and the engine's word for --deterministic."""
    derived: dict[str, Any] = {"padded_vocab_size": _padded_vocab_size(settings)}
    if settings.get("save") and not settings.get("tensorboard_dir"):
        derived["tensorboard_dir"] = os.path.join(settings["save"], "tensorboard")
    if settings.get("deterministic"):
        derived["deterministic_mode"] = True
    return derived


def _padded_vocab_size(settings: Settings) -> int:
    """Rows of the embedding over all tensor parallel ranks. The losses leave out those beyond the vocabulary.

    Raises ConfigError for a size that is given and cannot be.
    """
    size, tensor = settings["vocab_size"], settings.get("tensor_model_parallel_size", 1)
    if (divisor := settings.get("make_vocab_size_divisible_by", 1)) < 1:
        raise ConfigError(f"--make-vocab-size-divisible-by {divisor} must be greater than 0")
    multiple = divisor * tensor
    least = -(-size // multiple) * multiple
    if (padded := settings.get("padded_vocab_size")) is None:
        return least
    if padded < size or padded % tensor:
        raise ConfigError(
            f"--padded-vocab-size {padded}: give a multiple of --tensor-model-parallel-size {tensor} that is at least "
            f"the model's {size}, such as {-(-size // tensor) * tensor}, or leave it out"
        )
    return padded


def num_ranks_of(settings: Settings) -> int:
    """The ranks of the run: those that were started, or that a dry run on one process assumes (``--assume-ranks``).

    Raises ConfigError where torchrun has started another number than is assumed.
    """
    started, assumed = int(os.environ.get("WORLD_SIZE", "1")), settings.get("assume_ranks")
    if assumed and assumed != started and (started > 1 or _STARTED_BY_TORCHRUN in os.environ):
        raise ConfigError(
            f"--assume-ranks {assumed}, and torchrun has started {started}: run the tool without torchrun, or remove it"
        )
    return assumed or started


def checked_sizes(settings: Settings) -> ParallelSizes:
    """How the ranks of the run are divided. Raises ConfigError for a layout that cannot train."""
    sizes = ParallelSizes.of(settings, num_ranks_of(settings))
    check_layout(sizes, settings)
    check_layout_flags(sizes, settings)
    return sizes


def check_packed_rows(settings: Settings, what: str) -> None:
    """Raise ConfigError where documents share rows that Transformer Engine's attention cannot take so.

    It takes one row at a time. Where context parallelism splits the row, it expects each document to be split over the
    ranks, while the engine's batch splits the row as a whole: attention would cross the documents' boundaries.

    Args:
        settings: the engine's arguments by name.
        what: lays several documents into a row, for the message.
    """
    if settings["transformer_impl"] != "transformer_engine":
        return
    if (context := settings.get("context_parallel_size", 1)) > 1:
        raise ConfigError(
            f"{what} with --context-parallel-size {context}: Transformer Engine's attention would cross the boundaries "
            "of documents; add --transformer-impl local, whose attention does not (or use --tensor-model-parallel-size "
            "with --sequence-parallel and --recompute-granularity for long sequences)"
        )
    if settings["micro_batch_size"] > 1:
        raise ConfigError(
            f"--micro-batch-size {settings['micro_batch_size']}: Transformer Engine takes the document boundaries of "
            "one sequence at a time; give --micro-batch-size 1"
        )

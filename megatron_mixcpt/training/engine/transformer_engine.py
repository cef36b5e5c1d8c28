"""What Transformer Engine's flags need of the run and of the device; ``refused_flags.py`` lists what is not supported.

8-bit training is accepted with the recipes that scale by what a tensor holds now: nothing then outlasts a step, and
checkpoints are those of bfloat16. The output layer and the losses stay outside of it, and so does the frozen teacher.
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from megatron.core.extensions.transformer_engine import HAVE_TE

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import flag_name

Settings = Mapping[str, Any]

STATELESS_RECIPES = {"tensorwise": 16, "blockwise": 16, "mxfp8": 32}
"""Recipes of ``--fp8-recipe`` that keep nothing from step to step; what sizes of matrices must be multiples of."""

_FOR_FP8 = ("fp8_recipe", "first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
_OF_ITS_ATTENTION = {
    "chooses a kernel": ("attention_backend", "flash_attention_version", "use_flash_attn"),
    "chooses how ranks exchange keys and values": ("cp_comm_type", "hierarchical_context_parallel_sizes"),
}


def check_transformer_engine(explicit: Settings, settings: Settings, *, teacher_fp8: bool = False) -> None:
    """Raise ConfigError for a flag that is not accepted, or that this GPU cannot obey.

    Args:
        explicit: the arguments that the command line gives, by destination.
        settings: the engine's arguments: defaults, and over them what the command line gives.
        teacher_fp8: whether the teacher's layers run in 8 bits.
    """
    uses_it = settings["transformer_impl"] == "transformer_engine"
    if uses_it and not HAVE_TE:
        raise ConfigError(
            f"--transformer-impl transformer_engine: Transformer Engine cannot be imported here ({_why_missing()}); "
            "install it, or remove the flag: layers that do without it are used then"
        )
    _check_attention(explicit, uses_it)
    if uses_it:
        _check_windows(settings)
    for flag, given in {"--teacher-fp8": teacher_fp8, "--fp8-format": bool(settings.get("fp8"))}.items():
        if given and not uses_it:
            raise ConfigError(
                f"{flag} needs Transformer Engine, which is not used here, and nothing else multiplies in 8 bits: "
                "remove it"
            )
    if settings.get("fp8"):
        _check_student_fp8(settings)
    else:
        for name in _FOR_FP8:
            if name in explicit:
                raise ConfigError(f"{flag_name(name)} has no effect without --fp8-format: add that, or remove it")
    if teacher_fp8:
        _check_kernels("--teacher-fp8", "tensorwise", settings)


def _why_missing() -> str:
    if sys.modules.get("transformer_engine", ...) is None:  # as cpu_emulation leaves it
        return "it computes on GPUs alone, and this run is on the CPU"
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # its libraries raise what they like
        return str(error) or type(error).__name__
    return "its version is not supported"


def _check_attention(explicit: Settings, uses_it: bool) -> None:
    """The engine's choices of attention are among Transformer Engine's."""
    for choice, names in _OF_ITS_ATTENTION.items():
        for name in names:
            if name in explicit and not uses_it:
                raise ConfigError(
                    f"{flag_name(name)} {choice} in Transformer Engine, which is not used here: remove it"
                )
    backend = explicit.get("attention_backend")
    if backend is not None and backend.name == "local":
        raise ConfigError("--attention-backend local is not supported: give --transformer-impl local")


def _check_windows(settings: Settings) -> None:
    """Its ring of context-parallel ranks has no windows (``attn_forward_func_with_cp`` asserts it)."""
    size, ranks = settings.get("window_size"), settings.get("context_parallel_size", 1)
    if size is None or size[0] + 1 >= settings["seq_length"] or ranks == 1:
        return
    ways = settings.get("cp_comm_type") or "p2p"
    if not set([ways] if isinstance(ways, str) else ways) <= {"all_gather", "a2a"}:
        raise ConfigError(
            f"--context-parallel-size {ranks}: Transformer Engine exchanges keys and values under a sliding window, of "
            f"{size[0] + 1} tokens here, by all_gather or a2a alone: add --cp-comm-type all_gather"
        )


def _check_student_fp8(settings: Settings) -> None:
    recipe = settings.get("fp8_recipe", "delayed")
    if recipe not in STATELESS_RECIPES:
        raise ConfigError(
            f"--fp8-format {settings['fp8']} with --fp8-recipe {recipe} is not supported (its scales outlast a step, "
            f"in checkpoints too); give --fp8-recipe {', '.join(STATELESS_RECIPES)}"
        )
    if not settings.get("bf16"):
        raise ConfigError(f"--fp8-format {settings['fp8']} needs --bf16, which is everything else's precision: add it")
    _check_kernels(f"--fp8-format {settings['fp8']} --fp8-recipe {recipe}", recipe, settings)


def _check_kernels(flag: str, recipe: str, settings: Settings) -> None:
    """The device must have a recipe's kernels, and they take matrices whose sides are multiples of a number."""
    from transformer_engine.pytorch import fp8

    check = {"mxfp8": fp8.check_mxfp8_support, "blockwise": fp8.check_fp8_block_scaling_support}
    supported, reason = check.get(recipe, fp8.check_fp8_support)()
    if not supported:
        raise ConfigError(f"{flag}: this device does not support it ({reason.rstrip('.')}); remove it")
    multiple, tensor = STATELESS_RECIPES[recipe], settings.get("tensor_model_parallel_size", 1)
    tokens = settings["seq_length"] * settings["micro_batch_size"] // settings.get("context_parallel_size", 1)
    for what, size in {
        "tokens of a microbatch on a rank": tokens,
        "columns of the hidden states": settings["hidden_size"],
        "columns of the MLP on a rank": settings["ffn_hidden_size"] // tensor,
        "columns of the heads on a rank": settings["num_attention_heads"] * settings["kv_channels"] // tensor,
    }.items():
        if size % multiple:
            raise ConfigError(
                f"{flag}: the {size} {what} are not a multiple of {multiple}; change --seq-length or the layout, or "
                "remove it"
            )

"""What the flags of a mixture of experts need of this machine, checked before anything starts."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from megatron_mixcpt.errors import ConfigError

_OF_TRANSFORMER_ENGINE = {"moe_permute_fusion": "--moe-permute-fusion", "moe_router_fusion": "--moe-router-fusion"}


def check_experts(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a way to exchange tokens, or a kernel, that is not installed; ``settings``: the engine's.

    The engine would raise in the middle of building the model or in the first step.
    """
    if not settings.get("num_experts"):
        return
    dispatcher, has_deep_ep = settings.get("moe_token_dispatcher_type"), _is_installed("deep_ep")
    if (dispatcher == "flex" or settings.get("moe_enable_deepep")) and not has_deep_ep:
        raise ConfigError(
            "--moe-token-dispatcher-type flex needs DeepEP (the module deep_ep), which is not installed here: give "
            "--moe-token-dispatcher-type alltoall, or allgather"
        )
    for name, flag in _OF_TRANSFORMER_ENGINE.items():
        if settings.get(name) and settings["transformer_impl"] != "transformer_engine":
            raise ConfigError(f"{flag} chooses kernels of Transformer Engine, which is not used here: remove it")


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None

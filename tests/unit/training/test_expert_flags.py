"""What flags of a mixture of experts need is asked before anything starts."""

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.training import expert_flags
from megatron_mixcpt.training.expert_flags import check_experts

LOCAL = {"num_experts": 4, "transformer_impl": "local"}


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags in ({"moe_token_dispatcher_type": "flex"}, {"moe_enable_deepep": True}):
        with pytest.raises(ConfigError, match="--moe-token-dispatcher-type flex needs DeepEP .* give --moe-token"):
            check_experts(LOCAL | flags)
        check_experts(LOCAL | flags | {"num_experts": None})
    monkeypatch.setattr(expert_flags, "_is_installed", lambda module: module == "deep_ep")
    check_experts(LOCAL | {"moe_token_dispatcher_type": "flex"})


def test_fused_kernels_are_those_of_transformer_engine() -> None:
    for name, flag in (("moe_permute_fusion", "--moe-permute-fusion"), ("moe_router_fusion", "--moe-router-fusion")):
        with pytest.raises(ConfigError, match=f"{flag} chooses kernels of Transformer Engine, which is not used here"):
            check_experts(LOCAL | {name: True})
        check_experts(LOCAL | {name: True, "transformer_impl": "transformer_engine"})
    check_experts(LOCAL | {"moe_token_dispatcher_type": "alltoall"})

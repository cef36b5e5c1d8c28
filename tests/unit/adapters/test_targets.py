"""Modules that get an adapter."""

from megatron_mixcpt.adapters.targets import DEFAULT_TARGETS, adapted_modules


def test_routed_experts_routers_and_norms_get_none() -> None:
    layer = "decoder.layers.3."
    names = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.shared_experts.linear_fc1")
    others = ("mlp.experts.0.linear_fc1", "mlp.router", "pre_mlp_layernorm", "self_attention.linear_kv_down_proj")
    weights = [f"{layer}{name}.weight" for name in (*names, *others)] + [f"{layer}self_attention.linear_qkv.bias"]
    assert adapted_modules([*weights, "output_layer.weight"], DEFAULT_TARGETS) == [layer + name for name in names]

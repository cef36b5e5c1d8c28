"""Names of live parameters in the checkpoint, for the engine's two kinds of layers."""

import pytest

from megatron_mixcpt.conversion.llama import LLAMA
from megatron_mixcpt.conversion.load import checkpoint_name

KNOWN = {rule.engine for template in LLAMA.name_map for rule in template.instances(8, 0)}


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        # Layers of megatron.core (local): norms stand beside the linear layers.
        ("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
        ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
        # Transformer Engine's: norms are fused into them, as in the checkpoint.
        ("self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.layer_norm_weight"),
        ("mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"),
        ("self_attention.linear_proj.weight", "self_attention.linear_proj.weight"),
    ],
)
def test_layers_count_over_the_whole_model(parameter, expected):
    """The second layer of a stage that holds the model's layers 5 and 6 (counted from 1) is layer 5 from 0."""
    assert checkpoint_name(f"decoder.layers.1.{parameter}", [5, 6], KNOWN) == f"decoder.layers.5.{expected}"
    assert f"decoder.layers.5.{expected}" in KNOWN


@pytest.mark.parametrize("name", ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight"])
def test_names_outside_layers_stay(name):
    assert checkpoint_name(name, [5, 6], KNOWN) == name

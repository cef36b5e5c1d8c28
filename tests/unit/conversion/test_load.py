"""Which checkpoint tensor fills a live parameter, for both kinds of layers, and how: sizes, padding, experts."""

import pytest
import torch

from megatron_mixcpt.conversion.architectures.llama import LLAMA
from megatron_mixcpt.conversion.architectures.mixtral import MIXTRAL
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.conversion.load import ExpertParallel, _fill, checkpoint_name
from megatron_mixcpt.errors import CheckpointError
from tests.unit.conversion import tiny_hf

KNOWN = {rule.engine for template in LLAMA.name_map for rule in template.instances(range(8), 0)}


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


@pytest.mark.parametrize(
    "parameter",
    [
        "mlp.experts.local_experts.1.linear_fc2.weight",  # one module per expert
        "mlp.experts.linear_fc2.weight1",  # grouped layers
    ],
)
def test_experts_count_over_the_whole_model(parameter):
    """The second expert of a rank whose first is the model's expert 2 is expert 3."""
    known = {rule.engine for template in MIXTRAL.name_map for rule in template.instances(range(8), 4)}
    name = checkpoint_name(f"decoder.layers.0.{parameter}", [3], known, first_expert=2)
    assert name == "decoder.layers.2.mlp.experts.3.linear_fc2.weight" and name in known
    assert not ExpertParallel(rank=0, size=2).holds(name, 4) and ExpertParallel(rank=1, size=2).holds(name, 4)


@pytest.fixture
def hf_model(tmp_path):
    return read_model_folder(tiny_hf.save("llama", tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("decoder.layers.0.mlp.linear_fc1.weight", (80, 48)),  # half the feed-forward size
        ("decoder.layers.0.mlp.linear_fc2.weight", (48, 40)),
        ("decoder.layers.0.self_attention.linear_qkv.weight", (40, 48)),
        ("decoder.layers.0.self_attention.linear_qkv.weight", (96, 48)),
        ("decoder.final_layernorm.weight", (24,)),
        ("embedding.word_embeddings.weight", (256, 48)),  # fewer rows than tokens
        ("embedding.word_embeddings.weight", (259, 24)),
    ],
)
def test_a_parameter_of_another_size_is_refused(hf_model, name, shape):
    with pytest.raises(CheckpointError, match="its architecture flags differ"):
        _fill(torch.zeros(shape), name, hf_model.rules()[name], hf_model, 0, 1)


def test_padding_rows_become_zero(hf_model):
    target = torch.full((132, 48), float("nan"))
    rule = hf_model.rules()["embedding.word_embeddings.weight"]
    _fill(target, "embedding", rule, hf_model, tp_rank=1, tp_size=2)
    torch.testing.assert_close(target[:127], hf_model.tensors.read("model.embed_tokens.weight", slice(132, 259)))
    assert not target[127:].any()


@pytest.mark.parametrize("name", ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight"])
def test_names_outside_layers_stay(name):
    assert checkpoint_name(name, [5, 6], KNOWN) == name

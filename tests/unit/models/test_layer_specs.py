"""Which modules a layer is built from, and the names that a checkpoint knows them by."""

from unittest import mock

import pytest

from megatron_mixcpt.testing import run_distributed

# As Transformer Engine's layers are saved: each norm with the linear layer after it.
LAYER_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.q_layernorm.weight",
    "self_attention.k_layernorm.weight",
    "self_attention.linear_proj.weight",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
}
# The norm before a router stays separate, and the experts of all layers are one tensor, whatever module holds them.
EXPERT_LAYER_NAMES = {name for name in LAYER_NAMES if not name.startswith("mlp.")} | {
    "pre_mlp_layernorm.weight",
    "mlp.router.weight",
    "mlp.experts.experts.linear_fc1.weight",
    "mlp.experts.experts.linear_fc2.weight",
}
OTHER_NAMES = {"embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"}


def test_layer_specs() -> None:
    run_distributed(check_layer_specs, 1, cpu_emulation=True)


def check_layer_specs() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    check_modules_and_checkpoint_names()
    check_options_of_the_config()
    check_transformer_engine_is_asked_for_the_same()
    check_layers_with_experts()
    check_what_is_not_supported_is_refused()


def build_gpt(**overrides):
    from megatron.core.models.gpt import GPTModel

    from megatron_mixcpt.models.layer_specs import gpt_layer_spec

    options = config(**overrides)
    return GPTModel(
        options,
        gpt_layer_spec(options),
        64,
        16,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )


def config(**overrides):
    import torch.nn.functional as F
    from megatron.core.transformer.transformer_config import TransformerConfig

    shape = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2}
    llama = {"normalization": "RMSNorm", "gated_linear_unit": True, "activation_func": F.silu, "add_bias_linear": False}
    qwen = {"add_qkv_bias": True, "qk_layernorm": True}
    return TransformerConfig(**shape | llama | qwen | overrides)


def check_modules_and_checkpoint_names() -> None:
    from megatron_mixcpt.models.attention import ScaledDotProductAttention
    from megatron_mixcpt.models.norm import RMSNorm

    model = build_gpt(transformer_impl="local")
    attention = model.decoder.layers[1].self_attention
    assert isinstance(attention.core_attention, ScaledDotProductAttention)
    norms = [attention.q_layernorm, model.decoder.layers[0].pre_mlp_layernorm, model.decoder.final_layernorm]
    assert all(isinstance(norm, RMSNorm) for norm in norms)
    saved = model.sharded_state_dict().values()
    names = {value.key for value in saved if not value.key.endswith("_extra_state")}
    expected_names = OTHER_NAMES | {f"decoder.layers.{name}" for name in LAYER_NAMES}
    assert names == expected_names, names ^ expected_names


def check_layers_with_experts() -> None:
    """A layer has experts where ``moe_layer_freq`` says so, by its number in the model and not on its stage."""
    import torch

    from megatron_mixcpt.models.layer_specs import gpt_layer_spec

    experts = {"num_moe_experts": 4, "moe_ffn_hidden_size": 16, "transformer_impl": "local"}
    model = build_gpt(**experts)
    names = {value.key for value in model.sharded_state_dict().values() if not value.key.endswith("_extra_state")}
    assert names == OTHER_NAMES | {f"decoder.layers.{name}" for name in EXPERT_LAYER_NAMES}
    stages = {"num_layers": 4, "pipeline_model_parallel_size": 2, "pipeline_dtype": torch.float32}
    for frequency, expected in (([1, 0, 0, 1], [False, True]), (3, [False, True]), ([0, 0, 1, 0], [True, False])):
        options = config(**experts | stages, moe_layer_freq=frequency)
        layers = gpt_layer_spec(options, pp_rank=1).layer_specs
        assert [
            "pre_mlp_layernorm." not in layer.submodules.sharded_state_dict_keys_map for layer in layers
        ] == expected


def check_options_of_the_config() -> None:
    from megatron.core.transformer.torch_norm import L2Norm

    from megatron_mixcpt.models.norm import LayerNorm

    plain = build_gpt(add_qkv_bias=False, qk_layernorm=False, normalization="LayerNorm").decoder.layers[0]
    assert isinstance(plain.input_layernorm, LayerNorm) and plain.self_attention.q_layernorm is None
    assert plain.self_attention.linear_qkv.bias is None
    assert isinstance(build_gpt(qk_l2_norm=True).decoder.layers[0].self_attention.k_layernorm, L2Norm)


def check_transformer_engine_is_asked_for_the_same() -> None:
    """Transformer Engine itself needs CUDA to be imported; that the engine's function takes what we pass does not."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_submodules

    from megatron_mixcpt.models import layer_specs

    asked = mock.create_autospec(get_gpt_layer_with_transformer_engine_submodules)
    with (
        mock.patch.object(layer_specs, "HAVE_TE", True),
        mock.patch.object(layer_specs, "get_gpt_layer_with_transformer_engine_spec", asked),
    ):
        build_gpt(transformer_impl="local")
        asked.assert_not_called()
        layer_specs.gpt_layer_spec(config(transformer_impl="transformer_engine"))
    assert asked.call_args.kwargs["qk_layernorm"]


def check_what_is_not_supported_is_refused() -> None:
    from megatron_mixcpt.errors import ConfigError
    from megatron_mixcpt.models import layer_specs
    from megatron_mixcpt.models.layer_specs import gpt_layer_spec
    from megatron_mixcpt.models.options import ModelOptions, attach_options

    options = config(transformer_impl="transformer_engine")
    options.multi_latent_attention = True
    with (
        mock.patch.object(layer_specs, "HAVE_TE", True),
        pytest.raises(ConfigError, match="have no latent attention: give --transformer-impl local"),
    ):
        gpt_layer_spec(options)
    options = config(transformer_impl="transformer_engine")
    attach_options(options, ModelOptions(attention_softcap=50.0))
    with (
        mock.patch.object(layer_specs, "HAVE_TE", True),
        pytest.raises(ConfigError, match="no soft cap of attention's scores: give --transformer-impl local"),
    ):
        gpt_layer_spec(options)

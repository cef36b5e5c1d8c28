"""Latent attention on two tensor-parallel ranks that divide the sequence, beside transformers' DeepseekV3Attention.

Float32 on both sides, in another order of sums: 1e-5 of values around 1.
"""

from megatron_mixcpt.testing import run_distributed

LENGTH, BATCH, HIDDEN = 12, 2, 16
SIZES = {"q_lora_rank": 8, "kv_lora_rank": 6, "v_head_dim": 3}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 8.0, "original_max_position_embeddings": 4}
YARN |= {"mscale": 1.0, "mscale_all_dim": 0.5}


def test_latent_attention() -> None:
    run_distributed(check_outputs_and_gradients, 2, cpu_emulation=True)


def theirs():
    """transformers' module with random weights, its gradients of a sum of products, the input and the factors."""
    import torch
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4}
    config = DeepseekV3Config(hidden_size=HIDDEN, **SIZES, **heads, rope_parameters=YARN, attn_implementation="eager")
    torch.manual_seed(0)
    attention = DeepseekV3Attention(config, 0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, factors = torch.randn(2, LENGTH, BATCH, HIDDEN).unbind()
    positions = DeepseekV3RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    future = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    output, _ = attention(x.transpose(0, 1), positions, future)
    (output.transpose(0, 1) * factors).sum().backward()
    return attention, x, factors, output.transpose(0, 1).detach()


def ours():
    """One rank's part, without weights."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.spec_utils import build_module
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    from megatron_mixcpt.models.configure import configure_model
    from megatron_mixcpt.models.layer_options.latent_attention import latent_attention
    from megatron_mixcpt.models.layer_specs import TorchSpecProvider
    from megatron_mixcpt.models.options import ModelOptions, Rope
    from megatron_mixcpt.models.rotary import HFRotaryEmbedding, LatentRotaryEmbedding

    config = MLATransformerConfig(
        **{"num_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": 4, "layernorm_epsilon": 1e-2, **SIZES},
        **{"qk_head_dim": 5, "qk_pos_emb_head_dim": 4, "add_bias_linear": False, "attention_dropout": 0.0},
        **{"params_dtype": torch.float32, "tensor_model_parallel_size": 2, "sequence_parallel": True},
    )
    rope = Rope(YARN, 4, 4, 32)
    configure_model(config, ModelOptions(rope=rope, latent_norm_epsilon=1e-6))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    attention = build_module(latent_attention(TorchSpecProvider()), config, layer_number=1, pg_collection=groups)
    cp_group = parallel_state.get_context_parallel_group()
    attention.rotary_pos_emb = LatentRotaryEmbedding(HFRotaryEmbedding(rope, cp_group))
    return attention


NAMES = {
    "linear_q_down_proj": ("q_a_proj", None),
    "q_layernorm": ("q_a_layernorm", None),
    "linear_q_up_proj": ("q_b_proj", 0),
    "linear_kv_down_proj": ("kv_a_proj_with_mqa", None),
    "kv_layernorm": ("kv_a_layernorm", None),
    "linear_kv_up_proj": ("kv_b_proj", 0),
    "linear_proj": ("o_proj", 1),
}
"""Modules here, and in transformers with the axis that ranks divide."""


def check_outputs_and_gradients() -> None:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(2)
    model_parallel_cuda_manual_seed(1)
    reference, x, factors, expected = theirs()
    attention, rank = ours(), dist.get_rank()

    def part(tensor, axis):
        return tensor if axis is None else tensor.chunk(2, axis)[rank]

    assert {name.removesuffix(".weight") for name, _ in attention.named_parameters()} == NAMES.keys()
    for name, (theirs_name, axis) in NAMES.items():
        weight = reference.get_submodule(theirs_name).weight
        attention.get_submodule(name).weight.data.copy_(part(weight.data, axis))
    output, _ = attention(part(x, 0), None)
    torch.testing.assert_close(output, part(expected, 0), rtol=1e-5, atol=1e-5)
    (output * part(factors, 0)).sum().backward()
    for name, (theirs_name, axis) in NAMES.items():
        weight = attention.get_submodule(name).weight
        if axis is None:
            assert weight.sequence_parallel, "or the engine would not do what comes next"
            dist.all_reduce(weight.grad)
        gradient = part(reference.get_submodule(theirs_name).weight.grad, axis)
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())

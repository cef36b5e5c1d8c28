"""Llama (2, 3, 3.1, 3.2, 3.3) and the models that share its architecture, such as SmolLM2."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.rules import MergeGateUp, MergeQKV, Rename, Rule

ENGINE = "decoder.layers.{layer}."
HF = "model.layers.{layer}."

EMBEDDINGS: tuple[Rule, ...] = (
    Rename("embedding.word_embeddings.weight", "model.embed_tokens.weight", ("vocab", "hidden"), split=0),
    Rename("decoder.final_layernorm.weight", "model.norm.weight", ("hidden",)),
    Rename("output_layer.weight", "lm_head.weight", ("vocab", "hidden"), split=0),
)

ATTENTION: tuple[Rule, ...] = (
    Rename(ENGINE + "self_attention.linear_qkv.layer_norm_weight", HF + "input_layernorm.weight", ("hidden",)),
    MergeQKV(
        ENGINE + "self_attention.linear_qkv.weight",
        HF + "self_attn.q_proj.weight",
        HF + "self_attn.k_proj.weight",
        HF + "self_attn.v_proj.weight",
    ),
    Rename(ENGINE + "self_attention.linear_proj.weight", HF + "self_attn.o_proj.weight", ("hidden", "query"), split=1),
)

MLP: tuple[Rule, ...] = (
    Rename(ENGINE + "mlp.linear_fc1.layer_norm_weight", HF + "post_attention_layernorm.weight", ("hidden",)),
    MergeGateUp(ENGINE + "mlp.linear_fc1.weight", HF + "mlp.gate_proj.weight", HF + "mlp.up_proj.weight"),
    Rename(ENGINE + "mlp.linear_fc2.weight", HF + "mlp.down_proj.weight", ("hidden", "ffn"), split=1),
)

QKV_BIAS: tuple[Rule, ...] = (
    MergeQKV(
        ENGINE + "self_attention.linear_qkv.bias",
        HF + "self_attn.q_proj.bias",
        HF + "self_attn.k_proj.bias",
        HF + "self_attn.v_proj.bias",
        bias=True,
    ),
)

OUTPUT_BIAS: tuple[Rule, ...] = (
    Rename(ENGINE + "self_attention.linear_proj.bias", HF + "self_attn.o_proj.bias", ("hidden",)),
)

ATTENTION_BIAS: tuple[Rule, ...] = QKV_BIAS + OUTPUT_BIAS

MLP_BIAS: tuple[Rule, ...] = (
    MergeGateUp(ENGINE + "mlp.linear_fc1.bias", HF + "mlp.gate_proj.bias", HF + "mlp.up_proj.bias", bias=True),
    Rename(ENGINE + "mlp.linear_fc2.bias", HF + "mlp.down_proj.bias", ("hidden",)),
)

LLAMA = Architecture(
    name="LlamaForCausalLM",
    models="Llama 2, 3, 3.1, 3.2, 3.3; SmolLM2",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    biases={"attention_bias": ATTENTION_BIAS, "mlp_bias": MLP_BIAS},
    required={"hidden_act": "silu"},
)

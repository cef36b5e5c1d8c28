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

LLAMA = Architecture(
    name="LlamaForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    required={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
)

"""Apertus: QK norms, and an MLP without gate whose activation xIELU has two learned numbers in each layer."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, ENGINE, HF
from megatron_mixcpt.conversion.architectures.norm_rules import pre_norms, without_norms
from megatron_mixcpt.conversion.architectures.plain_mlp import plain_mlp
from megatron_mixcpt.conversion.architectures.qwen3 import QK_NORM
from megatron_mixcpt.conversion.architectures.rules import Rename, Scalar

ENGINE_XIELU, HF_XIELU = ENGINE + "mlp.activation_func.", HF + "mlp.act_fn."
XIELU = (
    Rename(ENGINE_XIELU + "alpha_p", HF_XIELU + "alpha_p", ("one",)),
    Rename(ENGINE_XIELU + "alpha_n", HF_XIELU + "alpha_n", ("one",)),
    Scalar(ENGINE_XIELU + "beta", HF_XIELU + "beta"),
    Scalar(ENGINE_XIELU + "eps", HF_XIELU + "eps"),
)
LLAMA3_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}

APERTUS = Architecture(
    name="ApertusForCausalLM",
    name_map=(
        *(*EMBEDDINGS, *without_norms(ATTENTION + plain_mlp("up_proj", "down_proj")), *QK_NORM, *XIELU),
        *pre_norms("attention_layernorm", "feedforward_layernorm"),
    ),
    biases={"attention_bias": ATTENTION_BIAS},
    arguments={"qk_layernorm": True, "swiglu": False},
    options={"activation": "xielu"},
    required={"hidden_act": "xielu"},
    hf_defaults={"rope_parameters": LLAMA3_ROPE, "rope_theta": 12e6},
    models="Apertus 8B and 70B",
)

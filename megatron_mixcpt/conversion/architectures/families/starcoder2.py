"""StarCoder2: LayerNorm, an MLP without gate, and biases everywhere."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS
from megatron_mixcpt.conversion.architectures.norm_rules import layer_norms
from megatron_mixcpt.conversion.architectures.plain_mlp import plain_mlp, plain_mlp_bias
from megatron_mixcpt.conversion.architectures.windows import WindowRules, every_layer

STARCODER2 = Architecture(
    name="Starcoder2ForCausalLM",
    name_map=layer_norms(EMBEDDINGS + ATTENTION + plain_mlp("c_fc", "c_proj")),
    biases={"use_bias": ATTENTION_BIAS + plain_mlp_bias("c_fc", "c_proj")},
    arguments={"normalization": "LayerNorm", "swiglu": False},
    options={"activation": "gelu_pytorch_tanh"},
    required={"hidden_act": "gelu_pytorch_tanh", "use_sliding_window": True},
    hf_defaults={"num_key_value_heads": 2, "tie_word_embeddings": True, "use_bias": True},
    spellings={"norm_epsilon": "rms_norm_eps"},
    windows=WindowRules(every_layer),
    models="StarCoder2 3B, 7B and 15B",
)

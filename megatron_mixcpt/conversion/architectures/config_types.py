"""Types and ranges of the values in ``config.json``, checked before anything is computed from them.

A config is untrusted input: a list in the place of a number, or a number of layers whose names would fill the memory,
must end in an error that names the key. What the keys mean is in ``hf_config.py``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from megatron_mixcpt.errors import ConfigError

# Names of tensors are listed per layer and expert; the largest open models have some 20,000.
MAX_LAYERS, MAX_EXPERTS, MAX_LISTED = 1_000, 1_000, 100_000
MAX_SIZE = 2**31 - 1

Refuse = Callable[[str, Any, str], ConfigError]
"""Makes the error for a key, its value and the reason."""
Check = tuple[Callable[[Any], bool], str]


def _count(limit: int) -> Check:
    return lambda value: type(value) is int and 0 < value <= limit, f"expected an integer from 1 to {limit:,}"


def _is_positive(value: Any) -> bool:
    # Python's integers can be larger than any float.
    return type(value) in (int, float) and 0 < value < 1e300 and math.isfinite(value)


POSITIVE: Check = (_is_positive, "expected a positive number")
NOT_NEGATIVE: Check = (lambda value: value == 0 or _is_positive(value), "expected a number of at least 0")
FLAG: Check = (lambda value: type(value) is bool, "expected true or false")
NAMES: Check = (
    lambda value: type(value) is list and all(type(item) is str for item in value),
    "expected a list of strings",
)
NAME: Check = (lambda value: type(value) is str, "expected a string")
NUMBERS: Check = (
    lambda value: type(value) is list and len(value) <= MAX_LISTED and all(_is_positive(item) for item in value),
    "expected a list of positive numbers",
)
FLAGS_OF_LAYERS: Check = (
    lambda value: type(value) is list and len(value) <= MAX_LAYERS and all(item in (0, 1) for item in value),
    "expected a list of 0 and 1",
)
LAYERS: Check = (
    lambda value: type(value) is list and len(value) <= MAX_LAYERS and all(type(item) is int for item in value),
    "expected a list of layers' numbers",
)
FIRST_LAYER: Check = (
    lambda value: type(value) is int and 0 <= value <= MAX_LAYERS,
    f"expected an integer from 0 to {MAX_LAYERS:,}",
)
OBJECT: Check = (lambda value: type(value) is dict, "expected an object")
SIZE = _count(MAX_SIZE)
BLOCK_SIZE: Check = (
    lambda value: type(value) is list and len(value) == 2 and all(SIZE[0](item) for item in value),
    "expected two positive integers",
)

CHECKS: dict[str, Check] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size", "head_dim"), SIZE),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "max_position_embeddings"), SIZE),
    **dict.fromkeys(("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim"), SIZE),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "full_attention_interval"), SIZE),
    "sliding_window": (lambda value: value == 0 or SIZE[0](value), "expected an integer from 0 to 2,147,483,647"),
    "num_hidden_layers": _count(MAX_LAYERS),
    **dict.fromkeys(("num_local_experts", "num_experts_per_tok"), _count(MAX_EXPERTS)),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group"), _count(MAX_EXPERTS)),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor", "factor"), POSITIVE),
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window", "norm_topk_prob"), FLAG),
    **dict.fromkeys(("attention_bias", "mlp_bias", "attention_out_bias", "use_bias"), FLAG),
    **dict.fromkeys(("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"), POSITIVE),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier"), POSITIVE),
    **dict.fromkeys(("logits_scaling", "logit_scale"), POSITIVE),
    # What follows belongs to the rotary embedding (rope.py).
    **dict.fromkeys(("rope_scaling", "rope_parameters", "sliding_attention", "full_attention"), OBJECT),
    "quantization_config": OBJECT,
    "weight_block_size": BLOCK_SIZE,
    **dict.fromkeys(("modules_to_not_convert", "ignored_layers"), NAMES),
    **dict.fromkeys(("rope_type", "type"), NAME),
    "rope_local_base_freq": POSITIVE,
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"), POSITIVE),
    **dict.fromkeys(("mscale", "mscale_all_dim"), NOT_NEGATIVE),
    **dict.fromkeys(("short_factor", "long_factor"), NUMBERS),
    "original_max_position_embeddings": SIZE,
    "truncate": FLAG,
    "layer_types": NAMES,
    **dict.fromkeys(("max_window_layers", "first_k_dense_replace"), FIRST_LAYER),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"), SIZE),
    "routed_scaling_factor": POSITIVE,
    "use_qk_norm": FLAG,
    "no_rope_layers": FLAGS_OF_LAYERS,
    "decoder_sparse_step": _count(MAX_LAYERS),
    "mlp_only_layers": LAYERS,
    "shared_expert_intermediate_size": SIZE,
    "qkv_bias": FLAG,
}


def wrong_value(values: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    """The first key with an invalid value: key, value and what was expected; None where there is none.

    The objects of the rotary embedding are checked as well. Null values count as absent.
    """
    for key, (is_good, expected) in CHECKS.items():
        value = values.get(key)
        if value is None:
            continue
        if not is_good(value):
            return key, value, expected
        if isinstance(value, dict) and (wrong := wrong_value(value)):
            return wrong
    listed = values.get("num_hidden_layers", 0) * values.get("num_local_experts", 1)
    if listed > MAX_LISTED:
        return (
            "num_local_experts",
            values["num_local_experts"],
            f"all layers together have more than {MAX_LISTED:,} experts",
        )
    return None

"""Tiny random transformers models by the name of their kind: those that tests and benchmarks/parity/ train.

A kind is a function without arguments that returns the configuration. To add one, write the function and list it in
``KINDS``, here or in a module of ``kinds/``. Shapes are small, but hard: 12 heads in 6 groups, 4 layers, a vocabulary
that no tensor parallel size but 5, 7, 11 divides, and no parameter at its initial value, so that a norm or a bias that
is left out shows.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import (
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.distributed.kinds import delta_nets, dense, experts, latent_attention, multipliers, towers
from tests.distributed.tiny_shape import SHAPE

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama() -> PreTrainedConfig:
    """Llama 3.2's rope scaling and tied embeddings."""
    return LlamaConfig(
        **SHAPE,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_ROPE,
        tie_word_embeddings=True,
    )


def qwen2() -> PreTrainedConfig:
    """Biases on query, key and value, and embeddings that are not tied."""
    return Qwen2Config(**SHAPE, max_position_embeddings=4096, rope_theta=1e6, tie_word_embeddings=False)


def mistral() -> PreTrainedConfig:
    """Mistral 7B v0.3 and later: no window."""
    return MistralConfig(**SHAPE, max_position_embeddings=4096, rope_theta=1e6, sliding_window=None)


def qwen3() -> PreTrainedConfig:
    """Norms on queries and keys, and heads that are wider than the hidden size over their number."""
    return Qwen3Config(**SHAPE, head_dim=8, max_position_embeddings=4096, rope_theta=1e6, tie_word_embeddings=True)


def smollm3() -> PreTrainedConfig:
    """Every second layer without rotary embedding."""
    return SmolLM3Config(
        **SHAPE, max_position_embeddings=4096, rope_theta=5e6, no_rope_layers=[1, 0, 1, 0], pad_token_id=None
    )


def llama_bias() -> PreTrainedConfig:
    """Biases in every linear layer but the output layer."""
    return LlamaConfig(**SHAPE, max_position_embeddings=4096, attention_bias=True, mlp_bias=True)


def qwen3_bias() -> PreTrainedConfig:
    """Biases in attention, beside its norms."""
    return Qwen3Config(**qwen3().to_dict() | {"attention_bias": True})


def phi3() -> PreTrainedConfig:
    """One tensor for query, key and value, and one for gate and up."""
    return Phi3Config(**SHAPE, max_position_embeddings=4096, sliding_window=None, pad_token_id=None)


def mixtral(num_chosen: int = 2) -> PreTrainedConfig:
    """Four experts of which each token takes two."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": num_chosen}
    return MixtralConfig(**SHAPE, **experts, max_position_embeddings=4096, rope_theta=1e6, sliding_window=None)


def qwen3_moe() -> PreTrainedConfig:
    """Eight small experts of which each token takes three, whose weights add up to one."""
    return _qwen3_moe(norm_topk_prob=True)


def qwen3_moe_plain() -> PreTrainedConfig:
    """The same, with weights as the softmax over all experts has them."""
    return _qwen3_moe(norm_topk_prob=False)


def _qwen3_moe(norm_topk_prob: bool, num_chosen: int = 3) -> PreTrainedConfig:
    experts = {"num_experts": 8, "num_experts_per_tok": num_chosen, "moe_intermediate_size": 24}
    options = {"norm_topk_prob": norm_topk_prob}
    return Qwen3MoeConfig(
        **SHAPE, **experts, **options, head_dim=8, max_position_embeddings=4096, tie_word_embeddings=False
    )


ORIGINAL = {"original_max_position_embeddings": 16}  # runs are longer: scaling shows
ROPES = {
    "fractional-theta": {"rope_type": "default", "rope_theta": 12345.678},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, **ORIGINAL},
    "yarn": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    "yarn-mscale": {
        **{"rope_type": "yarn", "factor": 40.0, "truncate": False, **ORIGINAL},
        **{"mscale": 0.707, "mscale_all_dim": 1.0},
    },
    "longrope": {
        **{"rope_type": "longrope", "factor": 4.0, **ORIGINAL},
        **{"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 3.5, 4.5]},
    },
}
"""Rotary embeddings of a Llama by name, for heads of 8 channels."""
WIDER_HEADS = {**SHAPE, "num_attention_heads": 6, "num_key_value_heads": 2}


def llama_with(rope: str) -> PreTrainedConfig:
    """Llama with a rotary embedding of ``ROPES``; ``dynamic`` starts from its number of positions, here 32."""
    positions = 32 if rope == "dynamic" else 4096
    parameters = {"rope_theta": 10000.0, **ROPES[rope]}
    return LlamaConfig(**SHAPE, head_dim=8, max_position_embeddings=positions, rope_parameters=parameters)


def phi3_partial() -> PreTrainedConfig:
    """Three quarters of the channels of a head rotate."""
    return _phi3({"rope_type": "default", "partial_rotary_factor": 0.75})


def phi3_longrope() -> PreTrainedConfig:
    """Phi-4-mini: two scales for each frequency, an attention factor, and channels that do not rotate."""
    factors = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.5, 2.5, 3.5]}
    return _phi3({"rope_type": "longrope", "partial_rotary_factor": 0.75, **factors, **ORIGINAL})


def smollm3_yarn() -> PreTrainedConfig:
    """An attention factor that half of the layers, which have no rotary embedding, do not have."""
    rope = {"rope_theta": 5e6, **ROPES["yarn"]}
    return SmolLM3Config(
        **SHAPE, max_position_embeddings=4096, rope_parameters=rope, no_rope_layers=[1, 0, 1, 0], pad_token_id=None
    )


def _phi3(rope: dict[str, object]) -> PreTrainedConfig:
    rope = {"rope_theta": 10000.0, **rope}
    options = {"max_position_embeddings": 64, "sliding_window": None, "pad_token_id": None, **ORIGINAL}
    return Phi3Config(**WIDER_HEADS, **options, rope_parameters=rope)


def mistral_window() -> PreTrainedConfig:
    """A window in every layer, of a length that is no multiple of a block's."""
    return MistralConfig(**SHAPE, max_position_embeddings=4096, rope_theta=1e6, sliding_window=12)


def qwen2_window() -> PreTrainedConfig:
    """A window in the last two layers."""
    return Qwen2Config(
        **SHAPE,
        max_position_embeddings=4096,
        rope_theta=1e6,
        tie_word_embeddings=False,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=2,
    )


def smollm3_window() -> PreTrainedConfig:
    """A window in the layers without rotary embedding."""
    config = smollm3().to_dict() | {"use_sliding_window": True, "sliding_window": 33, "layer_types": None}
    return SmolLM3Config(**config)


def phi3_window() -> PreTrainedConfig:
    """Phi-3 mini's window, one below a power of 2."""
    return Phi3Config(**SHAPE, max_position_embeddings=4096, sliding_window=31, pad_token_id=None)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": llama,
    "qwen2": qwen2,
    "mistral": mistral,
    "qwen3": qwen3,
    "smollm3": smollm3,
    "llama-bias": llama_bias,
    "qwen3-bias": qwen3_bias,
    "phi3": phi3,
    "mixtral": mixtral,
    "qwen3-moe": qwen3_moe,
    "qwen3-moe-plain": qwen3_moe_plain,
    "mixtral-all": partial(mixtral, num_chosen=4),
    "qwen3-moe-all": partial(_qwen3_moe, True, num_chosen=8),
    **{f"llama-{rope}": partial(llama_with, rope) for rope in ROPES},
    "phi3-partial": phi3_partial,
    "phi3-longrope": phi3_longrope,
    "smollm3-yarn": smollm3_yarn,
    "mistral-window": mistral_window,
    "qwen2-window": qwen2_window,
    "smollm3-window": smollm3_window,
    "phi3-window": phi3_window,
    **dense.KINDS,
    **multipliers.KINDS,
    **towers.KINDS,
    **delta_nets.KINDS,
    **experts.KINDS,
    **latent_attention.KINDS,
}


def architecture_of(kind: str) -> str:
    """The entry of ``architectures`` in the config.json of a kind's models."""
    config = KINDS[kind]()
    return config.architectures[0] if config.architectures else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]


def has_experts(kind: str) -> bool:
    """Whether routers choose experts."""
    return hasattr(KINDS[kind]().get_text_config(), "num_experts_per_tok")


def kinds_of_architectures() -> dict[str, list[str]]:
    """Each architecture's kinds, the one that is tried at every layout first."""
    kinds: dict[str, list[str]] = {}
    for kind in KINDS:
        kinds.setdefault(architecture_of(kind), []).append(kind)
    return kinds


def load_model(folder: Path) -> PreTrainedModel:
    """The float32 model of a folder, of the class that its config.json names, ready for evaluation."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model_class: type[PreTrainedModel] = getattr(transformers, name)
    model, report = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def build_model(kind: str, seed: int) -> PreTrainedModel:
    """A float32 model of a kind of ``KINDS``, ready for evaluation; every parameter is random, norms and biases too.

    So are the biases of routers that are no parameters.
    """
    torch.manual_seed(seed)
    model_class: type[PreTrainedModel] = getattr(transformers, architecture_of(kind))
    model = model_class(KINDS[kind]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.1 * torch.randn(buffer.shape))
    return model.eval()

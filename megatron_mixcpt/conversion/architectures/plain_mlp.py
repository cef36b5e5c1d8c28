"""Rules of an MLP without gate, by the names of its two linear layers in transformers, as ``"up_proj"``."""

from megatron_mixcpt.conversion.architectures.llama import ENGINE, HF
from megatron_mixcpt.conversion.architectures.norm_rules import PRE_NORMS
from megatron_mixcpt.conversion.architectures.rules import Rename, Rule


def plain_mlp(first: str, second: str) -> tuple[Rule, ...]:
    """The norm before it, as Llama names it, and both weights."""
    return (
        Rename(PRE_NORMS[1], HF + "post_attention_layernorm.weight", ("hidden",)),
        Rename(ENGINE + "mlp.linear_fc1.weight", HF + f"mlp.{first}.weight", ("ffn", "hidden"), split=0),
        Rename(ENGINE + "mlp.linear_fc2.weight", HF + f"mlp.{second}.weight", ("hidden", "ffn"), split=1),
    )


def plain_mlp_bias(first: str, second: str) -> tuple[Rule, ...]:
    """Both biases."""
    return (
        Rename(ENGINE + "mlp.linear_fc1.bias", HF + f"mlp.{first}.bias", ("ffn",), split=0),
        Rename(ENGINE + "mlp.linear_fc2.bias", HF + f"mlp.{second}.bias", ("hidden",)),
    )

"""Rules of norms that stand elsewhere than before Llama's attention and MLP."""

from dataclasses import replace

from megatron_mixcpt.conversion.architectures.llama import ENGINE, HF
from megatron_mixcpt.conversion.architectures.rules import Rename, Rule

PRE_NORMS = (ENGINE + "self_attention.linear_qkv.layer_norm_weight", ENGINE + "mlp.linear_fc1.layer_norm_weight")


def pre_norms(attention: str, mlp: str) -> tuple[Rule, ...]:
    """Of the norms before attention and the MLP, by their names in transformers, as ``"input_layernorm"``."""
    return tuple(
        Rename(engine, HF + f"{name}.weight", ("hidden",))
        for engine, name in zip(PRE_NORMS, (attention, mlp), strict=True)
    )


def post_norms(attention: str, mlp: str) -> tuple[Rule, ...]:
    """Of the norms after attention and the MLP, as :func:`pre_norms`.

    Where they stand is ``models/layer_options/branches.py``.
    """
    return (
        Rename(ENGINE + "self_attn_bda.norm.weight", HF + f"{attention}.weight", ("hidden",)),
        Rename(ENGINE + "mlp_bda.norm.weight", HF + f"{mlp}.weight", ("hidden",)),
    )


def without_norms(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of a layer but for those of its pre-norms."""
    return tuple(rule for rule in rules if rule.engine not in PRE_NORMS)


def layer_norms(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules with a bias beside the weight of each norm, for models with LayerNorm."""
    norms = (*PRE_NORMS, "decoder.final_layernorm.weight")
    biases = [
        replace(rule, engine=_bias_of(rule.engine), hf=_bias_of(rule.hf))
        for rule in rules
        if isinstance(rule, Rename) and rule.engine in norms
    ]
    return (*rules, *biases)


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"

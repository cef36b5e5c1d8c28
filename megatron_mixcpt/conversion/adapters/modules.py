"""Which modules of a Hugging Face model the adapter of an engine module belongs to, by the rules of the architecture.

The engine joins layers that Hugging Face models keep apart (query, key and value; gate and up). One adapter beside the
joined layer is one adapter beside each of them: A is the same for all, and B's rows are those of the weight.
"""

from collections.abc import Mapping

from torch import Tensor

from megatron_mixcpt.adapters.targets import TARGETS, adapted_modules
from megatron_mixcpt.conversion.architectures.rules import Dimensions, Rule
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan

WEIGHT = ".weight"


def adaptable_rules(plan: ModelPlan) -> dict[str, Rule]:
    """The rule of every engine module that can have an adapter, by the module's name."""
    rules = plan.rules()
    return {module: rules[module + WEIGHT] for module in adapted_modules(rules, TARGETS)}


def hf_weights(rule: Rule, dims: Dimensions) -> dict[str, tuple[int, ...]]:
    """The Hugging Face modules that make an engine module, and the shape [out, in] of the weight of each."""
    return {name.removesuffix(WEIGHT): shape for name, shape in rule.hf_shapes(dims).items()}


def take_b_apart(rule: Rule, b: Tensor, dims: Dimensions) -> Mapping[str, Tensor]:
    """B [out, rank] of an engine module as the B of each Hugging Face module, whose rows are in its own order."""
    return {name.removesuffix(WEIGHT): part for name, part in rule.take_apart(b, dims).items()}

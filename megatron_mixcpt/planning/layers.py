"""The layers of a model by their sizes; those of a folder are counted from the rules that convert its tensors."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megatron_mixcpt.adapters.targets import TARGETS, adapted_modules

if TYPE_CHECKING:  # imports torch, which a preset does not need
    from megatron_mixcpt.conversion.hf_model_folder import ModelPlan


class LinearShape(NamedTuple):
    """A linear layer that can have an adapter."""

    name: str
    """As in ``adapters.targets.TARGETS``."""
    rows: int
    columns: int


@dataclass(frozen=True)
class LayerShape:
    """One layer, by how parallelism divides its parameters."""

    divided: int
    """Parameters that tensor parallelism divides: attention, and the MLP or the shared experts."""
    copied: int
    """Parameters that every tensor-parallel rank holds: norms, biases of row-parallel layers, the router."""
    expert: int = 0
    """Parameters of one expert; 0: the layer has none."""
    inner: int = 0
    """Columns of the MLP, or of the shared experts beside the chosen ones."""
    linears: tuple[LinearShape, ...] = ()
    """The linear layers that can have an adapter, in the order of their names in ``adapters.targets.TARGETS``."""


def count_layers(plan: "ModelPlan") -> tuple[LayerShape, ...]:
    """Each layer of the model, the first one first."""
    counts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    dims = plan.dims
    for name, rule in plan.rules().items():
        if not (layer := re.match(r"decoder\.layers\.(\d+)\.", name)):
            continue
        size = rule.num_parameters(dims)
        if not rule.is_expert:
            counts[int(layer[1])]["divided" if rule.is_divided(dims) else "copied"] += size
        elif ".experts.0." in name:  # the others are as large
            counts[int(layer[1])]["expert"] += size
    linears = _linears(plan)
    return tuple(
        LayerShape(
            **{"divided": 0, "copied": 0, **counts[layer]},
            inner=_inner(plan, counts[layer]),
            linears=tuple(sorted(linears[layer], key=lambda linear: list(TARGETS).index(linear.name))),
        )
        for layer in sorted(counts)
    )


def _linears(plan: "ModelPlan") -> dict[int, list[LinearShape]]:
    """Layer -> its linear layers that can have an adapter."""
    found, rules = defaultdict(list), plan.rules()
    for module in adapted_modules(rules, TARGETS):
        rows, columns = rules[f"{module}.weight"].engine_shape(plan.dims)
        found[int(module.split(".")[2])].append(LinearShape(module.rpartition(".")[2], rows, columns))
    return found


def count_norm(plan: "ModelPlan") -> int:
    """Parameters of the norm after the last layer, weight and bias."""
    return sum(rule.num_parameters(plan.dims) for name, rule in plan.rules().items() if "final_layernorm" in name)


def _inner(plan: "ModelPlan", counts: dict[str, int]) -> int:
    """Columns of the layer's MLP, or of its shared experts."""
    arguments = plan.engine_arguments
    shared = arguments.get("moe_shared_expert_intermediate_size") or 0
    return shared if counts.get("expert") else arguments["ffn_hidden_size"]

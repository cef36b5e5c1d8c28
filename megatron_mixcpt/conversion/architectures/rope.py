"""The rotary embedding of a model, read from ``config.json`` as transformers 5 reads it.

transformers completes ``rope_parameters`` from older spellings (``rope_scaling``, a separate ``rope_theta``) and
computes the table of frequencies from the result (``modeling_rope_utils.py``). Here is the first half, for values that
nobody has checked before; ``models/rotary.py`` calls transformers' functions for the second. What transformers ignores
is ignored, and what it cannot compute is refused with the key's name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_mixcpt.conversion.architectures.config_types import Refuse
from megatron_mixcpt.conversion.architectures.windows import FULL
from megatron_mixcpt.models.options import Rope

LARGEST_FACTOR = 1_000_000
# Keys of config.json that each type's parameters take the place of.
_SPELLINGS = ("rope_scaling", "rope_parameters", "original_max_position_embeddings")

# What each type cannot do without, beside rope_theta: the keys that transformers demands.
REQUIRED_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": (),
}
_SCALED = ("rope_type", "rope_theta", "factor")
_ORIGINAL = "original_max_position_embeddings"
KEYS: dict[str, tuple[str, ...]] = {
    "default": ("rope_type", "rope_theta"),
    "linear": _SCALED,
    "dynamic": _SCALED,
    "yarn": (
        *_SCALED,
        *(_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": (*_SCALED, _ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "longrope": (*_SCALED, _ORIGINAL, "short_factor", "long_factor", "attention_factor"),
    "proportional": (*_SCALED, "partial_rotary_factor"),
}
"""What each type reads."""
# Types that are told the length of the context before it was lengthened.
WITH_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")
# Types that take their factor from the model's length where it is null or, of longrope, absent.
WITH_IMPLIED_FACTOR = ("yarn", "longrope")


@dataclass(frozen=True)
class RopeRules:
    """What transformers' code of one architecture makes of the rotary embedding."""

    types: tuple[str, ...] = tuple(REQUIRED_KEYS)
    """Values of ``rope_type`` that it takes."""
    older_types: Mapping[str, str] = field(default_factory=dict)
    """Older values, each with the one that it stands for."""
    rotates_partly: bool = False
    """Whether channels beyond ``partial_rotary_factor`` pass unrotated; other architectures ignore the key or fail."""
    by_type: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]]] | None = None
    """Gives ``rope_parameters`` of each type of layers, from config.json; None: all layers have one embedding."""


def parameters_by_type(bases: Mapping[str, tuple[str | None, float]]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """``RopeRules.by_type`` of configuration classes that scale full attention only (Olmo3Config, Gemma3TextConfig).

    Args:
        bases: for each type of layers, the older key of config.json that has its ``rope_theta``, and the default.
    """

    def by_type(values: Mapping[str, Any]) -> dict[str, Any]:
        given, found = values.get("rope_parameters") or {}, {}
        for kind, (key, default) in bases.items():
            base = values.get(key, default) if key else default
            found[kind] = {"rope_theta": base, **(given.get(kind) or {})}
        found[FULL] |= values.get("rope_scaling") or {}
        return found

    return by_type


def rope_of(values: Mapping[str, Any], rules: RopeRules, head_dim: int, refuse: Refuse) -> Rope:
    """The rotary embedding that ``values``, a config without nulls at its top, describe.

    Where the types of layers have their own, it is that of full attention. Raises the error of ``refuse`` for what
    transformers cannot compute.
    """
    if rules.by_type is not None:
        return ropes_by_layer(values, rules, (FULL,), head_dim, refuse)[0]
    parameters = _completed(values, rules)
    _check_type(parameters, rules, refuse)
    num_channels = _rotating_channels(parameters, rules, head_dim, refuse)
    rope = Rope(parameters, head_dim, num_channels, values["max_position_embeddings"])
    _check_numbers(rope, refuse)
    return rope


def ropes_by_layer(
    values: Mapping[str, Any], rules: RopeRules, layer_types: Sequence[str], head_dim: int, refuse: Refuse
) -> tuple[Rope, ...]:
    """Those of layers of the given types, as :func:`rope_of` reads one; none where all layers have one embedding.

    Raises the error of ``refuse`` for what is not an object by type, and for an embedding that depends on the length.
    """
    if rules.by_type is None:
        return ()
    by_type = rules.by_type(values)
    if unknown := sorted((values.get("rope_parameters") or {}).keys() - by_type.keys()):
        raise refuse("rope_parameters", unknown, f"expected one object for each of {', '.join(by_type)}")
    others = {key: value for key, value in values.items() if key not in _SPELLINGS}
    ropes = {
        kind: rope_of({**others, "rope_parameters": parameters}, replace(rules, by_type=None), head_dim, refuse)
        for kind, parameters in by_type.items()
    }
    if wrong := [rope.kind for rope in ropes.values() if rope.short_length is not None]:
        raise refuse("rope_type", wrong[0], "in some layers only, an embedding that depends on the length is not built")
    return tuple(ropes[kind] for kind in layer_types)


def _completed(values: Mapping[str, Any], rules: RopeRules) -> dict[str, Any]:
    """``rope_parameters`` with type, base and original length, as ``standardize_rope_params`` completes them."""
    parameters = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
    kind = parameters.pop("type", None)
    kind = parameters.get("rope_type") or kind or "default"
    parameters["rope_type"] = rules.older_types.get(kind, kind)
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = values.get("rope_theta", 10000.0)
    if parameters.get("partial_rotary_factor") is None:
        parameters.pop("partial_rotary_factor", None)
        parameters |= {key: values[key] for key in ("partial_rotary_factor",) if key in values}
    if parameters["rope_type"] in WITH_ORIGINAL_LENGTH:
        # The key beside the object goes before the one in it.
        own = parameters.get("original_max_position_embeddings") or values["max_position_embeddings"]
        parameters["original_max_position_embeddings"] = values.get("original_max_position_embeddings", own)
    return parameters


def _check_type(parameters: Mapping[str, Any], rules: RopeRules, refuse: Refuse) -> None:
    kind = parameters["rope_type"]
    if nested := [key for key, value in parameters.items() if isinstance(value, dict)]:
        raise refuse("rope_parameters", nested, "transformers has one rotary embedding for all layers of this model")
    if kind not in rules.types:
        raise refuse("rope_type", kind, f"transformers has {', '.join(rules.types)} for this architecture")
    implied = WITH_IMPLIED_FACTOR if "factor" in parameters else ("longrope",)
    for key in REQUIRED_KEYS[kind]:
        if parameters.get(key) is None and not (key == "factor" and kind in implied):
            raise refuse("rope_type", kind, f"its {key} is missing")


def _rotating_channels(parameters: Mapping[str, Any], rules: RopeRules, head_dim: int, refuse: Refuse) -> int:
    """How many channels of a head the table has angles for; it must be what transformers' attention expects."""
    kind, partial = parameters["rope_type"], parameters.get("partial_rotary_factor")
    if partial is not None and partial > 1.0:
        raise refuse("partial_rotary_factor", partial, "expected a fraction of the channels, at most 1")
    if partial is None or kind == "proportional" or (kind == "default" and not rules.rotates_partly):
        channels = head_dim
    else:
        channels = int(head_dim * partial)
    if channels < head_dim and not rules.rotates_partly:
        raise refuse("partial_rotary_factor", partial, f"with rope_type {kind}, transformers fails for this model")
    if channels % 2 or channels == 0:
        raise refuse("head_dim", head_dim, f"{channels} channels of a head rotate: expected an even number above 0")
    return channels


def _check_numbers(rope: Rope, refuse: Refuse) -> None:
    """Refuse what transformers' formulas divide by zero for, or have no real number for."""
    parameters, theta = rope.parameters, rope.parameters["rope_theta"]
    for key in ("short_factor", "long_factor") if rope.kind == "longrope" else ():
        if (length := len(parameters[key])) != rope.num_channels // 2:
            raise refuse(key, f"of {length} numbers", f"expected one for each of {rope.num_channels // 2} frequencies")
    if rope.kind == "dynamic" and rope.num_channels == 2:
        raise refuse("rope_type", rope.kind, "it needs heads of which more than 2 channels rotate")
    if (factor := parameters.get("factor")) and factor > LARGEST_FACTOR:
        raise refuse("factor", factor, f"expected a number up to {LARGEST_FACTOR:,}")
    if rope.kind == "yarn" and theta <= 1.0:
        raise refuse("rope_theta", theta, "expected a number above 1")
    if rope.kind == "llama3" and parameters["high_freq_factor"] == parameters["low_freq_factor"]:
        raise refuse("high_freq_factor", parameters["high_freq_factor"], "it must differ from low_freq_factor")
    if rope.kind == "dynamic" and parameters["factor"] < 1.0:
        raise refuse("factor", parameters["factor"], "expected a number of at least 1")
    if rope.kind == "longrope" and parameters["original_max_position_embeddings"] < 2:
        raise refuse("original_max_position_embeddings", 1, "expected at least 2 tokens")

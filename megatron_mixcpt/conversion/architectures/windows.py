"""Which layers have a sliding window, as transformers 5 reads it from ``config.json``.

A layer with ``sliding_window`` w sees the last w tokens, its own included: the engine's ``window_size`` (w - 1, 0),
which layers have it being ``window_attn_skip_freq``. The rule for the layers is that of the family's configuration
class, which ``layer_types`` overrules where the class has such a key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mixcpt.conversion.architectures.config_types import Refuse
from megatron_mixcpt.errors import ConfigError

Values = Mapping[str, Any]
"""``config.json`` without nulls, and with what transformers assumes for absent keys."""

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class WindowRules:
    """How a family's windows are read."""

    layers: Callable[[Values], Sequence[bool]]
    """Whether each layer slides where ``sliding_window`` is in use."""
    has_layer_types: bool = False
    """Whether ``layer_types``, where given, says it instead."""


def every_layer(values: Values) -> list[bool]:
    """All layers slide."""
    return [True] * values["num_hidden_layers"]


def last_layers(values: Values) -> list[bool]:
    """The layers from ``max_window_layers`` on slide."""
    return [index >= values["max_window_layers"] for index in range(values["num_hidden_layers"])]


def all_but_every(number: int) -> Callable[[Values], list[bool]]:
    """The rule by which every ``number``-th layer has full attention, and the others slide."""
    return lambda values: [(index + 1) % number != 0 for index in range(values["num_hidden_layers"])]


def by_pattern(values: Values) -> list[bool]:
    """The same, the number being ``sliding_window_pattern``. Raises ConfigError for what is no number of layers."""
    number = values["sliding_window_pattern"]
    if type(number) is not int or number < 1:
        raise ConfigError(f"config.json: sliding_window_pattern {number!r}: expected a number of layers above 0")
    return all_but_every(number)(values)


def layer_types(values: Values, rules: WindowRules | None) -> list[str]:
    """``layer_types`` as the family's configuration class completes it, whether a window is in use or not."""
    if rules is None:
        return [FULL] * values["num_hidden_layers"]
    types = values.get("layer_types") if rules.has_layer_types else None
    return types or [SLIDING if slides else FULL for slides in rules.layers(values)]


def window_arguments(values: Values, rules: WindowRules | None, refuse: Refuse) -> dict[str, Any]:
    """``window_size`` and ``window_attn_skip_freq`` of the engine; both None where no layer slides.

    Raises ConfigError for a family without windows (``rules`` is None) whose config.json has one in use, and for
    ``layer_types`` that do not fit the other keys.
    """
    window = values.get("sliding_window") if values.get("use_sliding_window", True) else None
    if window == 0:  # what Qwen2-MoE's configuration has where no window is in use
        raise refuse("sliding_window", window, "expected an integer above 0, or null")
    if rules is None and window is not None and window < values["max_position_embeddings"]:
        raise refuse("sliding_window", window, "transformers has no sliding window for this architecture")
    slides = _sliding_layers(values, rules, window, refuse) if rules else []
    if window is None or not any(slides):
        return {"window_size": None, "window_attn_skip_freq": None}
    return {
        "window_size": (window - 1, 0),
        "window_attn_skip_freq": None if all(slides) else [int(slide) for slide in slides],
    }


def _sliding_layers(values: Values, rules: WindowRules, window: int | None, refuse: Refuse) -> Sequence[bool]:
    by_rule = list(rules.layers(values)) if window is not None else [False] * values["num_hidden_layers"]
    types = values.get("layer_types")
    if types is None:
        return by_rule
    if len(types) != len(by_rule) or not set(types) <= {SLIDING, FULL}:
        reason = f"expected {len(by_rule)} entries, num_hidden_layers, each {SLIDING} or {FULL}"
        raise refuse("layer_types", types, reason)
    given = [kind == SLIDING for kind in types]
    if window is None and any(given):
        raise refuse("layer_types", types, f"no window is in use: {SLIDING} needs sliding_window")
    if not rules.has_layer_types and given != by_rule:
        raise refuse("layer_types", types, "transformers does not read it for this architecture")
    return given

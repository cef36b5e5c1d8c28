"""What ``--epochs`` and ``--mixture-weights`` say of each dataset.

Both flags name datasets (``cpt``, ``cpt.law``). A kind that has named sources may stand for all of them: its epochs
count for each source, and its weight is shared by them in proportion to the tokens that the epochs ask for.
"""

import math
from collections.abc import Collection, Mapping

from megatron_mixcpt.data.dataset_names import is_dataset_name, of_kind
from megatron_mixcpt.errors import ConfigError

EPOCHS = "--epochs"
WEIGHTS = "--mixture-weights"


def parse_epochs(text: str) -> float | dict[str, float]:
    """Read ``--epochs``: a number for all datasets, or ``cpt=1,sft=2``. Raises ConfigError."""
    return float(text) if _is_number(text) else parse_values(EPOCHS, text)


def parse_weights(text: str | None) -> dict[str, float] | None:
    """Read ``--mixture-weights``, where it is given. Raises ConfigError."""
    return parse_values(WEIGHTS, text) if text else None


def parse_values(flag: str, text: str) -> dict[str, float]:
    """Read ``cpt.law=0.5,cpt.replay=0.2,sft=0.3``. Raises ConfigError naming ``flag`` where it is anything else."""
    values: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        name = name.strip()
        if not is_dataset_name(name) or not _is_number(number):
            raise ConfigError(f"{flag} {text}: expected kinds and numbers such as cpt=0.7,sft=0.2,dpo=0.1")
        if name in values:
            raise ConfigError(f"{flag} {text}: {name} is given twice; give it one number")
        values[name] = float(number)
    return values


def passes_of(datasets: Collection[str], epochs: float | Mapping[str, float]) -> dict[str, float]:
    """How often each of ``datasets`` is passed over; once if ``epochs`` does not name it. Raises ConfigError."""
    if not isinstance(epochs, Mapping):
        epochs = dict.fromkeys(datasets, epochs)
    named = {name: value for given, value in epochs.items() for name in _members(EPOCHS, given, epochs, datasets)}
    passes = dict.fromkeys(datasets, 1.0) | named
    _check_values(EPOCHS, passes)
    return passes


def share_by_weight(tokens: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The sum of ``tokens`` (by dataset), shared by ``weights``; none for what they do not name. Raises ConfigError."""
    _check_values(WEIGHTS, weights)
    total, shared = sum(tokens.values()) / sum(weights.values()), dict.fromkeys(tokens, 0.0)
    for given, weight in weights.items():
        members = _members(WEIGHTS, given, weights, tokens)
        of_members = sum(tokens[name] for name in members)
        for name in members:
            part = 1.0 if len(members) == 1 else tokens[name] / max(of_members, 1)
            shared[name] = total * weight * part
    return shared


def _members(flag: str, given: str, values: Mapping[str, float], datasets: Collection[str]) -> list[str]:
    """The datasets that a name stands for."""
    if given in datasets:
        return [given]
    members = of_kind(given, datasets)
    if not members:
        raise ConfigError(f"{flag} {given}={values[given]}: the mixture has only {', '.join(datasets)}; remove it")
    if any(name in values for name in members):
        raise ConfigError(f"{flag} {given}={values[given]} stands for {', '.join(members)}: give either it or them")
    return members


def _check_values(flag: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{flag} {name}={value}: expected a number of zero or more")
    if not any(values.values()):
        raise ConfigError(f"{flag}: at least one kind must be above zero")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

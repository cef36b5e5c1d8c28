"""Which token ends documents, beside what the model's own settings say of it.

Preprocessing ends each sample with the tokenizer's ``eos_token`` (or ``--eos-token``). Models state an end of sequence
in two more places, ``eos_token_id`` of config.json and of generation_config.json, and the three need not agree. A
person who continues the training of a model should know which of them its documents get.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_mixcpt.data.tokens.file_difference import read_json

SETTINGS_FILES = ("config.json", "generation_config.json")
END_OF_TURN = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|end|>"),
        *("<|end_of_turn|>", "<|return|>", "<|END_OF_TURN_TOKEN|>"),
    }
)
"""What ends a turn, not a document, in the chat templates of common model families."""


def configured_eos(folder: Path) -> dict[str, tuple[int, ...]]:
    """``eos_token_id`` of each settings file that has one, a multimodal model's that of its language model.

    Raises CheckpointError where a file cannot be read.
    """
    found = {name: _ids(_eos_of(read_json(folder / name))) for name in SETTINGS_FILES}
    return {name: ids for name, ids in found.items() if ids}


def eos_warning(
    folder: Path, eos_token: str, eos_id: int, token_of: Callable[[int], str | None] = lambda _: None
) -> str | None:
    """What a person should know of the token that ends documents, in one line; None where all agree.

    Args:
        folder: the model folder.
        eos_token: what ends documents.
        eos_id: its id.
        token_of: the token of an id, for the message.
    """
    others = {name: ids for name, ids in configured_eos(folder).items() if eos_id not in ids}
    clauses = [f"{name} names {_listed(ids, token_of)} as the end of sequence" for name, ids in others.items()]
    if eos_token in END_OF_TURN:
        clauses.append("chat templates end each turn with that token")
    if not clauses:
        return None
    return (
        f"{folder}: documents end with {eos_token!r} (id {eos_id}), but {' and '.join(clauses)}; "
        "--eos-token of tools/preprocess_mixture.py chooses another"
    )


def _eos_of(settings: Mapping[str, Any]) -> Any:
    text = settings.get("text_config")
    own = settings.get("eos_token_id")
    return text.get("eos_token_id") if own is None and isinstance(text, dict) else own


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if type(item) is int)


def _listed(ids: tuple[int, ...], token_of: Callable[[int], str | None]) -> str:
    return " and ".join(f"{token!r} (id {item})" if (token := token_of(item)) else f"id {item}" for item in ids)

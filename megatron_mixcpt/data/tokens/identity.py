"""The identity of a tokenizer: a digest of what decides its token ids, wherever its files lie.

The same for a model folder, for the copy in a checkpoint and for an exported folder; another one as soon as a text, or
an allowed special token, would get other ids. Templates, what is put around a text (BOS), decoding, padding and
truncation do not count.
"""

import hashlib
import json
from typing import Any

_DECIDES_IDS = ("added_tokens", "normalizer", "pre_tokenizer", "model")
_DECIDES_OFFSETS = "trim_offsets"


def canonical_definition(definition: str) -> str:
    """What decides the ids of a serialised tokenizer (tokenizer.json's text), as text that can be compared.

    Without options that are off: releases of ``tokenizers`` differ in which of these they write.
    """
    content = json.loads(definition)
    deciding = {name: _without_defaults(content.get(name)) for name in _DECIDES_IDS}
    deciding["added_tokens"] = sorted(deciding["added_tokens"] or (), key=lambda token: token.get("id", 0))
    if isinstance(model := deciding["model"], dict):
        # The vocabulary as it stands: an id may be 0, a token empty.
        model |= {name: content["model"][name] for name in ("vocab", "merges") if name in content["model"]}
    return json.dumps(deciding, sort_keys=True)


def definition_digest(definition: str) -> str:
    """The sha256, in hexadecimal, of :func:`canonical_definition`."""
    return hashlib.sha256(canonical_definition(definition).encode()).hexdigest()


def _without_defaults(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: _without_defaults(item) for name, item in value.items() if name != _DECIDES_OFFSETS}
    return {name: item for name, item in kept.items() if not (item is None or item is False or item == "")}

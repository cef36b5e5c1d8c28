"""Language models inside of multimodal ones: config.json holds them as ``text_config``, and the files under a prefix.

The language model is trained as the text family that it is. Everything else, such as a vision tower, is in no model of
the engine and in no Megatron checkpoint: export copies it from the base model's folder (``conversion/carried.py``).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, TextTower
from megatron_mixcpt.conversion.architectures.tensor_names import INSIDE, OUTSIDE, TensorNames
from megatron_mixcpt.errors import ConfigError

TEXT_CONFIG = "text_config"
TIED = "tie_word_embeddings"
_OUTSIDE = (TIED, "quantization_config")
"""Keys that stand beside ``text_config`` and hold for the language model; those in it are not read."""


def text_tower(
    name: str,
    texts: Mapping[str, Architecture],
    *,
    tied: bool,
    models: str,
    names: tuple[TensorNames, ...] = (OUTSIDE, INSIDE),
) -> Architecture:
    """The architecture ``name``, whose language model is one of ``texts``, by their ``model_type``.

    Args:
        tied: whether embeddings are tied where config.json does not say; what its ``text_config`` says is not read.
        models: published models.
        names: how files may name the tensors.
    """
    texts = {
        kind: replace(text, name=name, hf_defaults={**text.hf_defaults, TIED: tied}) for kind, text in texts.items()
    }
    first = next(iter(texts.values()))
    return replace(first, models=models, tower=TextTower(texts, names))


def language_model(
    architecture: Architecture, path: Path, values: Mapping[str, Any]
) -> tuple[Architecture, Mapping[str, Any]]:
    """The text family that ``values``, the content of ``path``, hold, and its settings in one object.

    Raises ConfigError where there are none, or a family that transformers does not have there.
    """
    if architecture.tower is None:
        return architecture, values
    text, texts = values.get(TEXT_CONFIG), architecture.tower.texts
    if not isinstance(text, dict):
        raise ConfigError(f"{path} has no {TEXT_CONFIG}: the language model of {architecture.name} is described there")
    kind = text.get("model_type")
    if not isinstance(kind, str) or kind not in texts:
        raise ConfigError(
            f"{path}: {TEXT_CONFIG}.model_type {ascii(kind)} is not supported; for {architecture.name} these are: "
            f"{', '.join(texts)}"
        )
    own = {key: value for key, value in text.items() if key not in _OUTSIDE}
    outside = {key: values[key] for key in _OUTSIDE if values.get(key) is not None}
    return replace(texts[kind], tower=architecture.tower), {**own, **outside}


def with_text(values: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a multimodal model with other settings of its language model, as :func:`language_model` gives."""
    kept = {key: value for key, value in values[TEXT_CONFIG].items() if key in _OUTSIDE}
    return {**values, TEXT_CONFIG: {**{key: value for key, value in text.items() if key not in _OUTSIDE}, **kept}}

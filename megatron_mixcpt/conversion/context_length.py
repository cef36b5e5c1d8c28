"""A model for longer sequences than its config.json says: another rotary scaling, or only a higher bound.

The result is a config.json that transformers reads. It lies in the ``hf/`` folder of the run's checkpoints, so that
every later stage builds the same model and export writes it.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from megatron_mixcpt.conversion.architectures.config_types import wrong_value
from megatron_mixcpt.conversion.architectures.hf_config import HFConfig
from megatron_mixcpt.conversion.architectures.rope import (
    KEYS,
    WITH_ORIGINAL_LENGTH,
    rope_of,
)
from megatron_mixcpt.conversion.hf_model_folder import CONFIG_NAME, HFModel, ModelPlan, plan_of
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.frequencies import attention_factor
from megatron_mixcpt.models.options import Rope

FLAG = "--rope-scaling"
EXAMPLE = '{"rope_type": "yarn", "factor": 4.0}'
_SPELLINGS = ("rope_scaling", "rope_parameters", "rope_theta")


def lengthened(model: HFModel, scaling: str | None, positions: int | None) -> HFModel:
    """The model with another rotary embedding, more positions, or both.

    Args:
        model: as read from its folder.
        scaling: a JSON object in the terms of ``rope_parameters``; None keeps the model's embedding. Base and partial
            rotation are the model's unless they are in it, and so is the length before scaling.
        positions: the longest sequence, in tokens; None: what the scaling implies, or the model's own.

    Raises:
        ConfigError: for a scaling that is not valid, or that the model cannot have.
    """
    if scaling is None:
        return _replaced(model, with_positions(model, positions or 0), positions)
    if model.architecture.rope.by_type is not None:
        raise ConfigError(
            f"{FLAG}: {model.architecture.name} has a rotary embedding for each type of layers: "
            f"change rope_parameters in {model.folder / CONFIG_NAME}"
        )
    rope = _rope(model)
    parameters = _parameters(scaling, rope)
    positions = positions or _implied_positions(parameters, rope)
    config = _with_rope(model, parameters)
    values = HFConfig(model.folder / CONFIG_NAME, config, model.architecture).values
    rope_of(values, model.architecture.rope, rope.head_dim, _refuse)  # its errors name the flag, not the file
    other = _replaced(model, config, None)
    return _replaced(other, with_positions(other, positions), positions)


def canonical(plan: ModelPlan) -> str:
    """The rotary embedding of a model as one line of JSON, the same for all ways to write it down."""
    by_layer = [dict(rope.parameters) for rope in plan.options.layer_ropes]
    return json.dumps(by_layer or dict(_rope(plan).parameters), sort_keys=True)


def with_positions(plan: ModelPlan, positions: int) -> dict[str, Any]:
    """config.json for sequences of ``positions`` tokens, never fewer than before, with the same rotary embedding.

    Where the embedding follows from the number of positions, what it was is written down; ``dynamic`` scaling has no
    key for it and keeps its number, from which it goes on.
    """
    rope, config = _rope(plan), dict(plan.config)
    if positions <= rope.max_position_embeddings or rope.kind == "dynamic":
        return config
    config["max_position_embeddings"] = positions
    if plan.architecture.rope.by_type is not None:
        _check_same_ropes(plan, config)
        return config
    fixed: dict[str, Any] = {}
    if rope.kind == "yarn" and rope.parameters["factor"] is None:
        fixed["factor"] = rope.max_position_embeddings / rope.parameters["original_max_position_embeddings"]
    if rope.kind == "longrope" and rope.parameters.get("factor") is None:
        fixed["attention_factor"] = attention_factor(rope)
    if fixed:
        key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        config[key] = {**config[key], **fixed}
    return config


def _check_same_ropes(plan: ModelPlan, config: Mapping[str, Any]) -> None:
    if canonical(plan_of(plan.folder, plan.architecture, config)) != canonical(plan):
        raise ConfigError(
            f"{plan.folder / CONFIG_NAME}: with other max_position_embeddings, a rotary embedding changes: give "
            "original_max_position_embeddings and factor in rope_parameters"
        )


def _rope(plan: ModelPlan) -> Rope:
    assert plan.options.rope is not None  # every architecture has one
    return plan.options.rope


def _replaced(model: HFModel, config: Mapping[str, Any], positions: int | None) -> HFModel:
    """The model with another config.json, whose longest sequence is ``positions``, if given."""
    plan = dataclasses.replace(plan_of(model.folder, model.architecture, config), outer=model.outer, names=model.names)
    arguments = dict(plan.engine_arguments)
    if positions:
        arguments["max_position_embeddings"] = positions
    return HFModel(**vars(dataclasses.replace(plan, engine_arguments=arguments)), tensors=model.tensors)


def _refuse(key: str, value: Any, reason: str) -> ConfigError:
    return ConfigError(f"{FLAG}: {key} {value!r}: {reason}")


def _parameters(scaling: str, rope: Rope) -> dict[str, Any]:
    """``rope_parameters`` as the flag and, for what it leaves out, the model have them."""
    try:
        given = json.loads(scaling)
    except ValueError as error:
        raise ConfigError(f"{FLAG} {scaling}: not valid JSON ({error}); give an object such as '{EXAMPLE}'") from error
    if not isinstance(given, dict) or given.get("rope_type") not in KEYS:
        raise ConfigError(
            f"{FLAG} {scaling}: give a JSON object with rope_type ({', '.join(KEYS)}), such as '{EXAMPLE}'"
        )
    if wrong := wrong_value(given):
        raise _refuse(*wrong)
    kind = given["rope_type"]
    if unknown := sorted(given.keys() - KEYS[kind]):
        raise ConfigError(f"{FLAG}: {unknown[0]} is no key of rope_type {kind}, which has {', '.join(KEYS[kind])}")
    base = {key: rope.parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope.parameters}
    if kind in WITH_ORIGINAL_LENGTH:
        base["original_max_position_embeddings"] = _original_length(rope)
    return {**base, **given}


def _original_length(rope: Rope) -> int | None:
    """Tokens of the context before any scaling; None where config.json does not say."""
    if rope.kind in WITH_ORIGINAL_LENGTH:
        return rope.parameters["original_max_position_embeddings"]
    return rope.max_position_embeddings if rope.kind == "default" else None


def _implied_positions(parameters: Mapping[str, Any], rope: Rope) -> int:
    """The factor times the length before scaling."""
    original, factor = (
        parameters.get("original_max_position_embeddings", _original_length(rope)),
        parameters.get("factor"),
    )
    if original is None and parameters["rope_type"] in WITH_ORIGINAL_LENGTH:
        raise ConfigError(
            f"{FLAG}: give original_max_position_embeddings too: the model has rope_type {rope.kind} already"
        )
    if original is None or factor is None:
        raise ConfigError(
            f"{FLAG}: how long sequences become does not follow from it: give --max-position-embeddings N"
        )
    return int(factor * original)


def _with_rope(model: HFModel, parameters: dict[str, Any]) -> dict[str, Any]:
    """config.json with another rotary embedding, in the spelling that it has."""
    config = {key: value for key, value in model.config.items() if key not in _SPELLINGS}
    top = "original_max_position_embeddings"
    if top in parameters and top in {**model.architecture.hf_defaults, **config}:
        config[top] = parameters[top]
    if model.config.get("rope_parameters") or not model.config.keys() & {"rope_theta", "rope_scaling"}:
        return {**config, "rope_parameters": parameters}
    scaled = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return {**config, "rope_theta": parameters["rope_theta"], "rope_scaling": scaled}

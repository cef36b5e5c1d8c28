"""The rotary embedding of a config.json, against what transformers' own configuration classes make of the file."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.errors import ConfigError
from tests.unit.conversion import tiny_hf

FREQUENCIES = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 3.5, 4.5]}  # heads of 8 channels
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
LONGROPE = {"rope_type": "longrope", **FREQUENCIES, "original_max_position_embeddings": 64}

# Architecture and the keys of config.json that say something of the rotary embedding.
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_theta": 12345.678}),
    ("llama", {"rope_scaling": {}, "rope_theta": 7.0}),
    # The older object goes before the newer one, all of it, and a theta beside it before the default.
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0},
    ),
    ("llama", {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}),
    ("llama", {"rope_scaling": {"factor": 2.0}}),  # no type: no scaling
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 3, "rope_theta": 500.0}}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}}),
    # The original length beside the object goes before the one in it.
    (
        "llama",
        {
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            "original_max_position_embeddings": 32,
        },
    ),
    ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32, "rope_theta": 1e4}}),
    ("llama", {"rope_scaling": LLAMA3}),
    ("llama", {"rope_scaling": LONGROPE}),
    ("llama", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ("llama", {"partial_rotary_factor": 0.5}),  # which Llama ignores
    ("mixtral", {}),
    ("smollm3_tied", {}),
    ("phi3", {"partial_rotary_factor": 0.5, "rope_theta": 5.5}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}, "rope_theta": 5.5}),
    ("phi3", {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 30}}),  # Phi-3's own default: 4096
    ("phi3", {"rope_scaling": {**LONGROPE, "type": "yarn", "rope_type": None}}),
    ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 48}),
]


def folder_with(tmp_path: Path, name: str, changes: dict[str, Any]) -> Path:
    """A folder whose config.json says of the rotary embedding only what ``changes`` say."""
    config = tiny_hf.CONFIGS[name].to_dict()
    for key in ("rope_parameters", "original_max_position_embeddings", "rope_theta"):
        config.pop(key, None)
    architectures = [type(tiny_hf.CONFIGS[name]).__name__.replace("Config", "ForCausalLM")]
    content = {**config, "architectures": architectures, **_without_nulls(changes)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


def _without_nulls(changes: dict[str, Any]) -> dict[str, Any]:
    """Without a null rope_type, which transformers reads as a type."""
    return {
        key: {name: item for name, item in value.items() if (name, item) != ("rope_type", None)}
        if isinstance(value, dict)
        else value
        for key, value in changes.items()
    }


@pytest.mark.parametrize(("name", "changes"), CONFIGS, ids=range(len(CONFIGS)))
def test_as_transformers_reads_it(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    folder = folder_with(tmp_path, name, changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.from_pretrained(folder)
    config.standardize_rope_params()
    expected = {key: value for key, value in config.rope_parameters.items() if key != "type"}
    expected = {"partial_rotary_factor": 1.0, **expected}
    rope = read_config(folder).options.rope
    assert rope is not None
    assert {"partial_rotary_factor": 1.0, **rope.parameters} == expected
    assert (rope.max_position_embeddings, rope.head_dim) == (config.max_position_embeddings, 8)


@pytest.mark.parametrize(
    ("name", "changes", "channels"),
    [
        ("llama", {"partial_rotary_factor": 0.5}, 8),
        ("llama", {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}, 8),
        ("phi3", {"partial_rotary_factor": 0.5}, 4),
        ("phi3", {"partial_rotary_factor": 0.8}, 6),
    ],
)
def test_channels_that_rotate(tmp_path: Path, name: str, changes: dict[str, Any], channels: int) -> None:
    rope = read_config(folder_with(tmp_path, name, changes)).options.rope
    assert rope is not None and rope.num_channels == channels


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"rope_type": "axial"}, "rope_type 'axial' cannot be trained: transformers has default, linear, "),
        ("llama", {"rope_type": ["yarn"]}, r"rope_type \['yarn'\] cannot be trained: expected a string"),
        ("llama", {"rope_type": "linear"}, "rope_type 'linear' cannot be trained: its factor is missing"),
        ("llama", {"rope_type": "linear", "factor": None}, "rope_type 'linear' .*factor is missing"),
        ("llama", {"rope_type": "linear", "factor": -2.0}, "factor -2.0 cannot be trained: expected a positive"),
        ("llama", {"rope_type": "yarn"}, "rope_type 'yarn' cannot be trained: its factor is missing"),
        ("llama", {"rope_type": "dynamic", "factor": 1e200}, "factor 1e.200 .*up to 1,000,000"),
        ("llama", {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, "rope_theta 1.0 .*above 1"),
        ("llama", {"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "truncate 'no' .*true or false"),
        ("llama", {"rope_type": "yarn", "factor": 4.0, "mscale": -1}, "mscale -1 .*at least 0"),
        ("llama", {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0}, "attention_factor 0 .*positive"),
        ("llama", {"rope_type": "llama3", "factor": 4.0}, "rope_type 'llama3' .*its low_freq_factor is missing"),
        ("llama", {**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor 1.0 .*must differ from low_freq_factor"),
        ("llama", {**LONGROPE, "long_factor": [1.0]}, "long_factor 'of 1 numbers' .*one for each of 4 frequencies"),
        ("llama", {**LONGROPE, "short_factor": [0.0] * 4}, "short_factor .*a list of positive numbers"),
        ("llama", {"rope_type": "longrope"}, "rope_type 'longrope' .*its short_factor is missing"),
        ("llama", {"rope_type": "dynamic", "factor": 0.5}, "factor 0.5 .*at least 1"),
        ("llama", {"rope_type": "default", "partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 .*at most 1"),
        (
            "llama",
            {"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5},
            "partial_rotary_factor 0.5 .*fails",
        ),
        ("llama", {"full_attention": {"rope_type": "default"}}, r"rope_parameters \['full_attention'\] .*one rotary"),
        ("phi3", {"rope_type": "linear", "factor": 2.0}, "rope_type 'linear' .*has default, longrope for"),
        ("phi3", {"rope_type": "default", "partial_rotary_factor": 0.4}, "head_dim 8 .*3 channels of a head rotate"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    folder = folder_with(tmp_path, name, {"rope_parameters": changes})
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(folder)
    assert str(folder / "config.json") in str(caught.value) and "\n" not in str(caught.value)

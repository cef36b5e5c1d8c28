"""Rotary embeddings by the type of layer, against what transformers' configuration classes make of the file."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_mixcpt.conversion.context_length import canonical, lengthened, with_positions
from megatron_mixcpt.conversion.hf_model_folder import HFModel, read_config
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.options import Rope

LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
OLDER = {"rope_scaling": {**YARN, "attention_factor": 1.2}, "rope_theta": 7e4}
BOTH = {"full_attention": YARN, "sliding_attention": LINEAR}


def folder_with(tmp_path: Path, changes: dict[str, Any]) -> Path:
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    config = {"model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], **sizes, **changes}
    (tmp_path / "config.json").write_text(
        json.dumps({"intermediate_size": 8, "vocab_size": 8, "rms_norm_eps": 1e-5} | config)
    )
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        OLDER,
        {"rope_theta": 7e4},
        {"rope_parameters": {"full_attention": {**YARN, "rope_theta": 3.0}}},
        {"rope_parameters": BOTH},
        {"rope_parameters": {**BOTH, "sliding_attention": None}, "layer_types": ["full_attention"] * 4},
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}},
    ],
    ids=range(6),
)
def test_as_transformers_reads_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = folder_with(tmp_path, changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.from_pretrained(folder)
    options = read_config(folder).options
    assert options.rope is not None
    found = [dict(rope.parameters) for rope in options.layer_ropes or [options.rope] * 4]
    assert found == [config.rope_parameters[kind] for kind in config.layer_types]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (LINEAR, r"\['factor', 'rope_type'\] .*one object for each of full_attention, sliding_attention"),
        ({"full_attention": 3}, "full_attention 3 .*an object"),
        ({"full_attention": {"rope_type": "yarn"}}, "its factor is missing"),
        ({"sliding_attention": {"rope_type": "linear", "factor": -1}}, "factor -1 .*a positive number"),
        ({"sliding_attention": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' .*depends on the length"),
    ],
)
def test_refusals(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(folder_with(tmp_path, {"rope_parameters": parameters}))


def test_longer_sequences(tmp_path: Path) -> None:
    """More positions change nothing that the file states; what it leaves to the number of positions is refused."""
    plan = read_config(folder_with(tmp_path, {"rope_parameters": BOTH}))
    assert isinstance(plan.options.rope, Rope) and canonical(plan).count("yarn") == 1
    assert with_positions(plan, 128)["max_position_embeddings"] == 128
    with pytest.raises(ConfigError, match="--rope-scaling: Olmo3ForCausalLM has a rotary embedding for each type"):
        lengthened(HFModel(**vars(plan), tensors=None), json.dumps(YARN), None)  # type: ignore[arg-type]
    implied = {"full_attention": {"rope_type": "yarn", "factor": 4.0}}
    plan = read_config(folder_with(tmp_path, {"rope_parameters": implied}))
    with pytest.raises(ConfigError, match="give original_max_position_embeddings and factor"):
        with_positions(plan, 128)

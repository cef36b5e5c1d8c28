"""A lengthened model's config.json, in both spellings, as transformers reads it."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_mixcpt.conversion.context_length import canonical, lengthened, with_positions
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.conversion.hf_model_folder import HFModel, read_config, read_model_folder
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.models.frequencies import hf_frequencies
from tests.unit.conversion import tiny_hf

YARN = '{"rope_type": "yarn", "factor": 4.0}'
LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HFModel:
    """Of 64 positions, without scaling."""
    return read_model_folder(tiny_hf.save("llama", tmp_path_factory.mktemp("model") / "hf"))


def with_config(model: HFModel, folder: Path, **changes: Any) -> HFModel:
    """The model with other keys in config.json; null takes one out."""
    config = {key: value for key, value in {**model.config, **changes}.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return HFModel(**vars(read_config(folder)), tensors=model.tensors)


def read_by_transformers(model: HFModel, folder: Path) -> transformers.PreTrainedConfig:
    (folder / "config.json").write_text(json.dumps(model.config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize(
    ("scaling", "positions", "expected", "length"),
    [
        (YARN, None, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        (YARN, 200, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 200),
        ('{"rope_type": "linear", "factor": 2}', None, {"rope_type": "linear", "factor": 2}, 128),
        ('{"rope_type": "default", "rope_theta": 5e5}', 128, {"rope_type": "default", "rope_theta": 5e5}, 128),
        # It goes on from the number of positions, which therefore stays.
        ('{"rope_type": "dynamic", "factor": 2.0}', None, {"rope_type": "dynamic", "factor": 2.0}, 64),
    ],
)
def test_what_transformers_reads(
    model: HFModel,
    tmp_path: Path,
    is_older: bool,
    scaling: str,
    positions: int | None,
    expected: dict[str, Any],
    length: int,
) -> None:
    base = with_config(model, tmp_path / "base", rope_parameters=None, rope_theta=250.0) if is_older else model
    other = lengthened(base, scaling, positions)
    config = read_by_transformers(other, tmp_path)
    assert config.max_position_embeddings == length
    assert config.rope_parameters == {"rope_theta": 250.0 if is_older else 10000.0, **expected}
    assert other.engine_arguments["max_position_embeddings"] == (128 if "dynamic" in scaling else length)
    assert ("rope_theta" in other.config) is is_older
    assert canonical(other) == canonical(lengthened(base, scaling.replace(" ", "  "), positions)) != canonical(base)


def test_a_scaled_model_keeps_the_length_before_scaling(model: HFModel) -> None:
    once = lengthened(model, YARN, None)
    twice = lengthened(once, '{"rope_type": "yarn", "factor": 8.0}', None)
    assert twice.config["rope_parameters"]["original_max_position_embeddings"] == 64
    assert twice.config["max_position_embeddings"] == 512


def test_phi3_has_the_length_before_scaling_beside_the_object(model: HFModel, tmp_path: Path) -> None:
    phi3 = read_model_folder(tiny_hf.save("phi3", tmp_path / "phi3"))
    scaling = {"rope_type": "longrope", "factor": 2.0, **LONGROPE}
    other = lengthened(phi3, json.dumps(scaling), None)
    config = read_by_transformers(other, tmp_path)
    assert config.original_max_position_embeddings == 32 and config.max_position_embeddings == 64
    assert config.rope_parameters["original_max_position_embeddings"] == 32
    assert other.options.rope is not None and other.options.rope.parameters["original_max_position_embeddings"] == 32


@pytest.mark.parametrize(
    ("rope", "fixed"),
    [
        ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32}, "factor"),
        ({"rope_type": "longrope", **LONGROPE}, "attention_factor"),
        ({"rope_type": "dynamic", "factor": 2.0}, None),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_more_positions_leave_the_table_as_it_is(
    model: HFModel, tmp_path: Path, rope: dict[str, Any], fixed: str | None, key: str
) -> None:
    before = with_config(model, tmp_path / "a", **{"rope_parameters": None, key: rope})
    after = with_config(before, tmp_path / "b", **with_positions(before, 200))
    assert after.config["max_position_embeddings"] == (200 if fixed else 64)
    assert fixed is None or after.config[key][fixed] is not None
    assert before.options.rope is not None and after.options.rope is not None
    for length in (40, 100):
        (frequencies, factor), (others, other) = (hf_frequencies(m.options.rope, length) for m in (before, after))
        assert frequencies.equal(others) and factor == other


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ("yarn", r"--rope-scaling yarn: not valid JSON .* such as '\{\"rope_type\": \"yarn\", \"factor\": 4.0\}'"),
        ("[]", r"--rope-scaling \[\]: give a JSON object with rope_type \(default, linear, "),
        ('{"type": "yarn", "factor": 4}', "give a JSON object with rope_type"),
        ('{"rope_type": "yarn", "factor": "4"}', "--rope-scaling: factor '4': expected a positive number"),
        ('{"rope_type": "yarn"}', "--rope-scaling: how long sequences become"),
        ('{"rope_type": "linear", "factor": 2, "beta_fast": 3}', "beta_fast is no key of rope_type linear, which has "),
        ('{"rope_type": "default", "rope_theta": 5e5}', "give --max-position-embeddings N"),
        ('{"rope_type": "llama3", "factor": 4}', "--rope-scaling: rope_type 'llama3': its low_freq_factor is missing"),
    ],
)
def test_what_is_no_scaling_is_refused(model: HFModel, scaling: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lengthened(model, scaling, None)


def test_the_length_before_scaling_is_asked_for_where_it_is_not_known(model: HFModel) -> None:
    once = lengthened(model, '{"rope_type": "linear", "factor": 2}', None)
    with pytest.raises(ConfigError, match="give original_max_position_embeddings too: .* rope_type linear already"):
        lengthened(once, YARN, None)


def test_the_metadata_of_a_run(model: HFModel, tmp_path: Path) -> None:
    other = lengthened(model, YARN, None)
    folder = copy_hf_metadata(model.folder, tmp_path, other, rope_scaling=canonical(other))
    assert read_config(folder).options == other.options
    copy_hf_metadata(model.folder, tmp_path, other, rope_scaling=canonical(other))  # the run resumes
    with pytest.raises(CheckpointError, match="belongs to a run with the rotary embedding .*yarn.* that of the model"):
        copy_hf_metadata(model.folder, tmp_path, model)

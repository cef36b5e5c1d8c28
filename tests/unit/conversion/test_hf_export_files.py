"""config.json of an export: the dtype and length of training, and otherwise the same bytes."""

import json
from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.hf_export_files import metadata_folder, warning_of_end, write_card, write_config
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan, read_config
from megatron_mixcpt.errors import CheckpointError
from tests.unit.conversion import tiny_hf

LENGTH = tiny_hf.SIZES["max_position_embeddings"]


def plan_with(tmp_path: Path, **changes: object) -> ModelPlan:
    config = {**tiny_hf.CONFIGS["llama"].to_dict(), "architectures": ["LlamaForCausalLM"], **changes}
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    return read_config(tmp_path / "in")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_keeps_its_key(tmp_path: Path, key: str) -> None:
    plan = plan_with(tmp_path, **{"dtype": None, "torch_dtype": None, key: "float32"})
    write_config(plan, tmp_path / "out", {torch.bfloat16}, {})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**plan.config, key: "bfloat16"}


@pytest.mark.parametrize(("seq_length", "expected"), [(LENGTH * 2, LENGTH * 2), (LENGTH // 2, LENGTH), (None, LENGTH)])
def test_the_length_is_never_lowered(tmp_path: Path, seq_length: int | None, expected: int) -> None:
    plan = plan_with(tmp_path, dtype="float16")
    write_config(plan, tmp_path / "out", {torch.float32}, {"seq_length": seq_length})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == expected


def test_a_config_that_is_right_is_not_written_again(tmp_path: Path) -> None:
    write_config(plan_with(tmp_path, dtype="float32"), tmp_path / "out", {torch.float32}, {"seq_length": 8})
    assert not (tmp_path / "out" / "config.json").exists()


def test_weights_of_several_dtypes_are_loaded_in_the_widest(tmp_path: Path) -> None:
    write_config(plan_with(tmp_path, dtype="bfloat16"), tmp_path / "out", {torch.bfloat16, torch.float32}, {})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_the_metadata_is_the_checkpoints_or_the_references(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no hf/ folder .* give the model folder .* as --hf-reference"):
        metadata_folder(tmp_path, None)
    assert metadata_folder(tmp_path, "base") == Path("base")
    (tmp_path / "hf").mkdir()
    assert metadata_folder(tmp_path, None) == tmp_path / "hf"
    with pytest.raises(CheckpointError, match="has the model's config and tokenizer: remove --hf-reference base"):
        metadata_folder(tmp_path, "base")


def test_a_card_without_an_origin_names_the_reference(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write_card(tmp_path / "base", tmp_path, {}, {})
    assert "base_model: base\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "stops", "is_warned"),
    [
        ({"mixture": "m", "null_tokenizer_eod_id": 0}, 0, False),
        ({"mixture": "m", "null_tokenizer_eod_id": 0}, [2, 0], False),
        ({"mixture": "m", "null_tokenizer_eod_id": 0}, [2, 3], True),
        ({"mixture": "m", "null_tokenizer_eod_id": 0}, None, False),
        ({"null_tokenizer_eod_id": 0}, 2, False),  # of SFT, whose template says what ends a response
        ({}, 2, False),
    ],
)
def test_an_end_at_which_generation_does_not_stop(tmp_path: Path, arguments: dict, stops: object, is_warned: bool):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    warning = warning_of_end(tmp_path, arguments)
    assert (warning is not None) is is_warned
    assert warning is None or "ended with token 0, at which generation does not stop" in warning
    assert warning is None or "generation_config.json 2 and 3" in warning

"""``tools/convert_to_hf.py`` as a function: every flag reaches the export, and a wrong value is one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.conversion.to_hf_tool import ToHFSettings, build_parser, main
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import settings_from
from tests.unit.conversion import tiny_hf


def test_every_flag_reaches_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_from_hf(tiny_hf.save("llama", tmp_path / "hf"), tmp_path / "megatron")
    (tmp_path / "megatron" / "release").rename(tmp_path / "megatron" / "iter_0000007")
    (tmp_path / "megatron" / "hf").rename(tmp_path / "reference")
    paths = ["--load", str(tmp_path / "megatron"), "--save", str(tmp_path / "out")]
    flags = ["--iteration", "7", "--dtype", "bfloat16", "--max-shard-gb", "60e-6"]
    main([*paths, *flags, "--hf-reference", str(tmp_path / "reference")])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 39 tensors, 0.00 GB\n"
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1 and all(path.stat().st_size < 70_000 for path in shards)
    assert {tensor.dtype for path in shards for tensor in load_file(path).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_defaults() -> None:
    settings = settings_from(build_parser().parse_args(["--load", "a", "--save", "b"]), ToHFSettings)
    assert settings == ToHFSettings(load=Path("a"), save=Path("b"))
    assert settings.max_shard_gb == 50 and settings.iteration is settings.dtype is settings.hf_reference is None


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--iteration", "0", "--iteration 0: must be greater than 0"),
        ("--max-shard-gb", "0", "--max-shard-gb 0.0: must be a number greater than 0"),
        ("--max-shard-gb", "nan", "--max-shard-gb nan: must be a number greater than 0"),
        ("--max-shard-gb", "inf", "--max-shard-gb inf: must be a number greater than 0"),
        ("--dtype", "float16", "argument --dtype: invalid choice"),
    ],
)
def test_a_wrong_value_is_refused(flag: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from(build_parser().parse_args(["--load", "a", "--save", "b", flag, value]), ToHFSettings)

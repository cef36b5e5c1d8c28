"""``tools/verify_conversion.py`` as a function: what it prints and its exit code, up to the forward pass.

The forward pass is run by ``tests/distributed/test_conversion_verify.py``.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.flags import settings_from
from megatron_mixcpt.verification.compare import TOLERANCES, BitComparison, ForwardComparison
from megatron_mixcpt.verification.preflight import Preflight
from megatron_mixcpt.verification.tool import (
    VerificationSettings,
    bits_line,
    build_parser,
    check_num_ranks,
    forward_lines,
    main,
    preflight_lines,
    tokens_of,
)
from tests.unit.conversion import tiny_hf
from tests.unit.conversion.adapters.lora_checkpoint import random_adapters, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf`` with a tokenizer, and ``megatron`` made from it."""
    root = tmp_path_factory.mktemp("verification")
    tiny_hf.save_tokenizer(tiny_hf.save("llama", root / "hf"))
    convert_from_hf(root / "hf", root / "megatron")
    return root


def exit_code(*argv: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, argv)))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_good_conversion_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--hf-model", folder / "hf", "--load", folder / "megatron", "--preflight-only") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{folder / 'hf'}: LlamaForCausalLM, 39 tensors, torch.float32",
        f"{folder / 'megatron'}: 39 tensors bit for bit, 0 in another dtype",
    ]


def test_other_bits_fail(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (folder / "hf").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] += 1
    weights["model.embed_tokens.weight"][3] = 0
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert exit_code("--hf-model", tmp_path, "--load", folder / "megatron", "--preflight-only") == 1
    said = capsys.readouterr().out
    assert "37 tensors bit for bit, 0 in another dtype, 2 DIFFERENT: model.embed_tokens.weight" in said
    assert "  warning: model.embed_tokens.weight has 1 rows near zero (ids 3)" in said


def test_adapters_are_not_a_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = random_adapters(folder / "hf", ("linear_proj",))
    save_checkpoint(folder / "hf", tmp_path, adapters, ("linear_proj",))
    assert exit_code("--hf-model", folder / "hf", "--load", tmp_path, "--preflight-only") == 1
    assert "holds adapters, not a model: export it first with" in capsys.readouterr().err


def test_a_folder_with_a_problem_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--hf-model", tiny_hf.save("llama", tmp_path / "m"), "--preflight-only") == 1
    assert "  problem: no tokenizer could be read from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-tokens", "0"], "--num-tokens 0: must be greater than 0"),
        (["--pipeline-model-parallel-size", "-1"], "--pipeline-model-parallel-size -1: must be greater than 0"),
        (["--dtype", "int8"], "argument --dtype: invalid choice"),
    ],
)
def test_a_wrong_value_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from(build_parser().parse_args(["--hf-model", "a", *flags]), VerificationSettings)


def test_the_number_of_ranks_is_that_of_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    sizes = {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}
    check_num_ranks(VerificationSettings(hf_model=Path("a"), **sizes))
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "TP 2 x PP 1 x EP 2 needs 4 processes, not 2: use torchrun --nproc-per-node 4"
    with pytest.raises(ConfigError, match=message):
        check_num_ranks(VerificationSettings(hf_model=Path("a"), **sizes))


def test_the_first_tokens_of_the_text(folder: Path, tmp_path: Path) -> None:
    settings = VerificationSettings(hf_model=folder / "hf", num_tokens=5)
    assert tokens_of(settings).shape == (5,)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty.txt has no tokens"):
        tokens_of(VerificationSettings(hf_model=folder / "hf", text=tmp_path / "empty.txt"))
    (tmp_path / "latin1.txt").write_bytes(b"\xe4")
    with pytest.raises(DataError, match=r"latin1.txt could not be read as UTF-8"):
        tokens_of(VerificationSettings(hf_model=folder / "hf", text=tmp_path / "latin1.txt"))


def test_what_is_printed() -> None:
    assert preflight_lines(Preflight(1, ["a"], ["b"])) == ["  problem: a\n", "  warning: b\n"]
    assert bits_line(BitComparison(1, ["x"], [])) == "1 tensors bit for bit, 1 in another dtype"
    assert bits_line(BitComparison(1, [], list("abcd"))).endswith("4 DIFFERENT: a, b, c")
    tolerance = TOLERANCES[torch.float32]
    same = forward_lines(ForwardComparison([0.0, 1e-6], 1e-6, 0.0, 1.0), tolerance, "float32")
    assert "no layer differs; worst layer 1.0e-06" in same and same.endswith("\nthe same model")
    other = forward_lines(ForwardComparison([0.0, 1.0], 1e-6, 0.0, 1.0), tolerance, "float32")
    assert "FIRST DIFFERENCE in layer 1 (from 0)" in other and other.endswith("\nNOT the same model")

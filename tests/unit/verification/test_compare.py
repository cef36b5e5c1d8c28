"""The verdict on two forward passes. The passes themselves: ``tests/distributed/test_conversion_verify.py``."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.verification import compare
from megatron_mixcpt.verification.compare import ForwardComparison, Tolerance, _compare_logits, compare_bits
from tests.unit.conversion import tiny_hf

TOLERANCE = Tolerance(hidden=1e-3, logit=1e-2, kl=1e-4, top1=0.9)
EQUAL = ForwardComparison(layers=[0.0, 1e-3], logit=1e-2, kl=1e-4, top1=0.9)


def test_what_is_within_the_tolerance_passes() -> None:
    assert EQUAL.passes(TOLERANCE) and EQUAL.first_difference(TOLERANCE) is None


@pytest.mark.parametrize(
    "change",
    [{"layers": [0.0, 2e-3]}, {"layers": [math.nan, 0.0]}, {"logit": 2e-2}, {"kl": math.nan}, {"top1": 0.89}],
    ids=str,
)
def test_each_figure_alone_fails(change: dict) -> None:
    assert not replace(EQUAL, **change).passes(TOLERANCE)


def test_the_first_layer_that_differs() -> None:
    assert replace(EQUAL, layers=[0.0, math.nan, 1.0]).first_difference(TOLERANCE) == 1


def test_logits_by_hand() -> None:
    """Two tokens over two columns; the third column is padding. KL of (1/2, 1/2) from (3/4, 1/4): ln(2/sqrt(3))."""
    expected = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    actual = torch.tensor([[[math.log(3), 0.0, 9.0], [0.0, 2.0, 9.0]]])
    relative, kl, top1 = _compare_logits(actual, expected) or (0.0, 0.0, 0.0)
    assert relative == pytest.approx(math.log(3) / 2)
    assert kl == pytest.approx(math.log(2 / math.sqrt(3)) / 2)
    assert top1 == 1.0
    assert _compare_logits(None, expected) is None


def test_another_dtype_is_not_compared_bit_for_bit(tmp_path: Path) -> None:
    half, full = (tiny_hf.save("llama", tmp_path / str(dtype), dtype) for dtype in (torch.bfloat16, torch.float32))
    convert_from_hf(half, tmp_path / "megatron")
    found = compare_bits(read_model_folder(full), MegatronCheckpoint(tmp_path / "megatron"))
    assert (found.num_equal, len(found.cast), found.different) == (0, 39, [])


@pytest.mark.parametrize(
    ("architecture", "dtype", "expected"),
    [
        ("llama", torch.float32, {"transformer_impl": "local"}),
        ("llama", torch.bfloat16, {}),
        ("mixtral", torch.float32, {"transformer_impl": "local"}),
    ],
)
def test_float32_is_compared_on_layers_that_multiply_in_it(
    architecture: str, dtype: torch.dtype, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformer Engine's would multiply in TF32, and every sound conversion would be called another model."""

    class Asked(Exception):
        pass

    def ask(plan: object, dtype: torch.dtype, **overrides: object) -> None:
        raise Asked(overrides)

    monkeypatch.setattr(compare, "transformer_config", ask)
    folder = tiny_hf.save(architecture, tmp_path)
    with pytest.raises(Asked) as asked:
        compare.compare_forward(folder, torch.tensor([1, 2]), dtype=dtype)
    assert asked.value.args == (expected,)

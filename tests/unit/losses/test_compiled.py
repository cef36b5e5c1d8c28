"""The compiled passes against the uncompiled ones and the dense reference, and what happens without a compiler."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.cross_entropy import vocab_parallel_cross_entropy
from tests.unit.losses.dense_reference import expected_mixcpt_loss
from tests.unit.losses.test_lssd import ALPHA, GRADIENT_TOLERANCE, TOLERANCE, assert_matches, run, sample

# Blocks of columns and a rest; more tokens than a chunk of rows takes. Fewer than eight blocks would be merged by code
# of their own, in which the sums of equal models may be rounded differently.
VOCAB_SIZE = 9 * 1024 + 300


@pytest.fixture
def compile_everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile inputs of any size, and fail if that does not work (on machines that have a compiler)."""
    monkeypatch.setattr(compiled, "COMPILE_ELEMENTS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_equals_the_plain_function(dtype: torch.dtype, compile_everything, monkeypatch) -> None:
    student, teacher, labels = sample(300, VOCAB_SIZE)
    student, teacher = student.to(dtype), teacher.to(dtype)
    # Equal top logits within a block and across blocks.
    teacher[:4, 5], teacher[:4, 6], teacher[:4, 2200] = 30.0, 30.0, 30.0
    options = {"distill_mask": torch.arange(300) % 4 > 0}
    result, gradient = run(student, teacher, labels, **options)
    monkeypatch.setattr(compiled, "COMPILE_ELEMENTS", 10**12)
    expected, expected_gradient = run(student, teacher, labels, **options)
    # Sums are added up in another order: a few roundings of numbers of about 10, and one of bfloat16 gradients.
    rounding = GRADIENT_TOLERANCE if dtype == torch.float32 else {"rtol": 2**-7, "atol": 5e-7}
    torch.testing.assert_close(result.loss, expected.loss, **TOLERANCE)
    torch.testing.assert_close(result.lssd, expected.lssd, **TOLERANCE)
    assert torch.equal(result.swapped, expected.swapped)
    torch.testing.assert_close(gradient, expected_gradient, **rounding)


def test_compiled_equals_the_dense_reference(compile_everything) -> None:
    student, teacher, labels = sample(40, VOCAB_SIZE)
    expected = expected_mixcpt_loss(student, teacher, labels, ALPHA)
    result, gradient = run(student, teacher, labels)
    assert_matches(result, gradient, expected)
    assert torch.equal(run(student, teacher, labels, inplace=True)[1], gradient)
    assert_matches(*run(student, None, labels), expected_mixcpt_loss(student, None, labels, ALPHA))


def test_compiled_forward_divergence_at_a_temperature(compile_everything) -> None:
    student, teacher, labels = sample(40, VOCAB_SIZE)
    kind = {"divergence": "forward", "temperature": 2.0}
    result, gradient = run(student, teacher, labels, **kind)
    expected = expected_mixcpt_loss(student, teacher, labels, ALPHA, **kind)
    # The divergence, and its rounding, is multiplied by temperature^2.
    torch.testing.assert_close(result.loss.double(), expected.loss, rtol=0.0, atol=4e-5)
    torch.testing.assert_close(gradient.double(), expected.gradient, **GRADIENT_TOLERANCE)


def test_compiled_equal_models_have_no_divergence_at_all(compile_everything) -> None:
    student, _, _ = sample(20, VOCAB_SIZE)
    result, gradient = run(student, student.clone(), student.argmax(-1), alpha=0.0)
    assert torch.equal(result.lssd, torch.zeros(20)) and not gradient.any()


def test_a_process_may_compile_for_many_vocabularies(compile_everything, monkeypatch: pytest.MonkeyPatch) -> None:
    # Dynamo stops after eight compilations of a function; each size is a function of its own.
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend="eager", **options))
    for vocab_size in range(1030, 1042):
        student, _, labels = sample(3, vocab_size)
        loss = vocab_parallel_cross_entropy(student, labels, tp_group=None)
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, labels, reduction="none"))


def test_torchs_own_switch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "COMPILE_ELEMENTS", 1)
    monkeypatch.setattr(compiled, "_compiled", None)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    student, teacher, labels = sample(8, 100)
    assert_matches(*run(student, teacher, labels), expected_mixcpt_loss(student, teacher, labels, ALPHA))


def test_without_a_compiler_it_warns_once_and_goes_on(monkeypatch) -> None:
    def fail(function, sizes):
        def call(*args):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler found")

        return call

    monkeypatch.setattr(compiled, "COMPILE_ELEMENTS", 1)
    monkeypatch.setattr(compiled, "_compiler_failed", False)
    monkeypatch.setattr(compiled, "_compiled", fail)
    student, teacher, labels = sample(8, 100)
    with pytest.warns(UserWarning, match="runs uncompiled.*no C\\+\\+ compiler found") as caught:
        result, gradient = run(student, teacher, labels)
    assert len(caught) == 1
    assert_matches(result, gradient, expected_mixcpt_loss(student, teacher, labels, ALPHA))

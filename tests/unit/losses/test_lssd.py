"""The Mix-CPT loss on one rank: values and gradients against the dense float64 reference, and the corner cases."""

import pytest
import torch
from torch import Tensor

from megatron_mixcpt.losses.lssd import MixCPTLoss, mixcpt_loss, vocab_parallel_mixcpt_loss
from megatron_mixcpt.objective import Divergence, Objective
from tests.unit.losses.dense_reference import expected_mixcpt_loss

ALPHA = 0.8
# What the contract asks of float32 logits of ordinary size (the logits here reach about 15).
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
GRADIENT_TOLERANCE = {"rtol": 0.0, "atol": 5e-7}


def sample(num_tokens: int = 48, vocab_size: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits near them, and labels of which a third are the teacher's top token."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(num_tokens, vocab_size, generator=generator) * 3
    teacher = student + torch.randn(num_tokens, vocab_size, generator=generator)
    labels = torch.randint(0, vocab_size, (num_tokens,), generator=generator)
    labels[::3] = teacher.argmax(-1)[::3]
    return student, teacher, labels


def objective(alpha: float = ALPHA, swap: bool = True, divergence: str = "reverse", **options) -> Objective:
    """The options of the loss, named as the dense reference names them."""
    return Objective(
        distillation="lssd" if swap else "kd", alpha=alpha, divergence=Divergence(direction=divergence, **options)
    )


def run(student: Tensor, teacher: Tensor | None, labels: Tensor, grad_output: Tensor | float = 1.0, **options):
    """The loss on one rank and the gradient of ``(grad_output * loss).sum()`` in the student's logits."""
    leaf = student.clone().requires_grad_()
    others = {name: options.pop(name) for name in ("inplace", "vocab_size", "distill_mask") if name in options}
    result = mixcpt_loss(leaf, teacher, labels, objective(**options), tp_group=None, **others)
    (gradient,) = torch.autograd.grad((result.loss * grad_output).sum(), leaf)
    return result, gradient


def assert_matches(result: MixCPTLoss, gradient: Tensor, expected, **tolerance) -> None:
    for name in ("loss", "ntp", "lssd", "teacher_top", "student_top"):
        actual = getattr(result, name)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), getattr(expected, name), **(tolerance or TOLERANCE), msg=name)
    assert torch.equal(result.swapped, expected.swapped) and torch.equal(result.agreed, expected.agreed)
    torch.testing.assert_close(gradient.double(), expected.gradient, **(tolerance or GRADIENT_TOLERANCE))


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0])
def test_loss_and_gradient_equal_the_dense_reference(swap: bool, alpha: float) -> None:
    student, teacher, labels = sample()
    grad_output = torch.rand(len(labels), generator=torch.Generator().manual_seed(1))
    result, gradient = run(student, teacher, labels, grad_output, alpha=alpha, swap=swap)
    assert_matches(result, gradient, expected_mixcpt_loss(student, teacher, labels, alpha, swap, grad_output))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_forward_divergence_and_temperature(divergence: str, temperature: float) -> None:
    student, teacher, labels = sample()
    kind = {"divergence": divergence, "temperature": temperature}
    result, gradient = run(student, teacher, labels, **kind)
    expected = expected_mixcpt_loss(student, teacher, labels, ALPHA, **kind)
    # The divergence is multiplied by temperature^2, and its rounding with it.
    rounding = {"rtol": 0.0, "atol": 1e-5 * max(1.0, temperature**2)}
    torch.testing.assert_close(result.lssd.double(), expected.lssd, **rounding)
    torch.testing.assert_close(result.loss.double(), expected.loss, **rounding)
    torch.testing.assert_close(gradient.double(), expected.gradient, **GRADIENT_TOLERANCE)
    equal, no_gradient = run(student, student.clone(), student.argmax(-1), alpha=0.0, **kind)
    assert torch.equal(equal.lssd, torch.zeros_like(equal.lssd)) and not no_gradient.any()


@pytest.mark.parametrize("swap", [True, False])
def test_the_public_function_is_the_paper_s_loss(swap: bool) -> None:
    student, teacher, labels = sample()
    expected, _ = run(student, teacher, labels % 990, swap=swap, vocab_size=990)
    result = vocab_parallel_mixcpt_loss(
        student, teacher, labels % 990, alpha=ALPHA, tp_group=None, swap=swap, inplace=False, vocab_size=990
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))
    assert result._fields[:4] == ("loss", "ntp", "lssd", "swapped")


def test_without_a_teacher_the_loss_is_next_token_prediction() -> None:
    student, _, labels = sample()
    result, gradient = run(student, None, labels)
    assert_matches(result, gradient, expected_mixcpt_loss(student, None, labels, ALPHA))


def test_worked_case() -> None:
    """Two columns, p = (3/4, 1/4), q = (4/5, 1/5), label 1: the swap makes q~ = (1/5, 4/5).

    ntp = ln 4; lssd = 3/4 ln(15/4) + 1/4 ln(5/16); loss = (ntp + lssd) / 2 at alpha 1/2.
    """
    student, teacher = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[4.0, 1.0]]).log()
    result, _ = run(student, teacher, torch.tensor([1]), alpha=0.5)
    ntp, lssd = torch.tensor(4.0).log(), 0.75 * torch.tensor(3.75).log() + 0.25 * torch.tensor(0.3125).log()
    torch.testing.assert_close(result.ntp, ntp[None])
    torch.testing.assert_close(result.lssd, lssd[None])
    torch.testing.assert_close(result.loss, (ntp + lssd)[None] / 2)
    assert result.swapped.tolist() == [True]


@pytest.mark.parametrize(("divergence", "temperature"), [("reverse", 1.0), ("forward", 0.5), ("reverse", 2.0)])
def test_teacher_entropy_on_request(divergence: str, temperature: float) -> None:
    student, teacher, labels = sample()
    options = {"divergence": divergence, "temperature": temperature}
    result, gradient = run(student, teacher, labels, **options, teacher_entropy=True)
    log_q = (teacher.double() / temperature).log_softmax(-1)
    torch.testing.assert_close(result.teacher_entropy.double(), -(log_q.exp() * log_q).sum(-1), **TOLERANCE)
    without, expected_gradient = run(student, teacher, labels, **options)
    assert torch.equal(result.loss, without.loss) and torch.equal(gradient, expected_gradient)
    assert not without.teacher_entropy.any()


def test_shapes_and_what_carries_a_gradient() -> None:
    student, teacher, labels = sample(12)
    student = student.requires_grad_()
    result = vocab_parallel_mixcpt_loss(
        student.view(3, 4, -1), teacher.view(3, 4, -1), labels.view(3, 4), alpha=ALPHA, tp_group=None
    )
    assert all(part.shape == (3, 4) for part in result)
    assert [part.requires_grad for part in result] == [True] + [False] * 7
    assert result.swapped.dtype == torch.bool


def test_bfloat16_logits_are_upcast() -> None:
    """Against the reference on the same bfloat16 numbers, so that only the gradient's final rounding differs."""
    student, teacher, labels = (part.bfloat16() if part.is_floating_point() else part for part in sample())
    result, gradient = run(student, teacher, labels)
    expected = expected_mixcpt_loss(student, teacher, labels, ALPHA)
    assert gradient.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: half a unit in the last place is 2**-9 of the value, with room for ties in float32.
    assert_matches(result, expected.gradient, expected, **TOLERANCE)
    torch.testing.assert_close(gradient.double(), expected.gradient, rtol=2**-8, atol=5e-7)
    rounding = (expected.gradient.bfloat16().double() - expected.gradient).norm()
    assert (gradient.double() - expected.gradient).norm() <= 1.02 * rounding


def test_equal_teacher_logits_go_to_the_lowest_index() -> None:
    student, teacher, labels = sample(8, 50)
    teacher[:, 11], teacher[:, 37] = 20.0, 20.0
    labels[:4], labels[4:] = 11, 37
    result, gradient = run(student, teacher, labels)
    assert result.swapped.tolist() == [False] * 4 + [True] * 4
    assert_matches(result, gradient, expected_mixcpt_loss(student, teacher, labels, ALPHA))


def test_equal_teacher_logits_of_two_blocks_go_to_the_lowest_index() -> None:
    """The kernels read blocks of 1,024 columns; bfloat16 logits tie often. The third block is shorter."""
    student, teacher, labels = sample(8, 2100)
    teacher[:, 700], teacher[:, 1500], teacher[:, 2090] = 20.0, 20.0, 20.0
    labels[:4], labels[4:6], labels[6:] = 700, 1500, 2090
    result, gradient = run(student, teacher, labels)
    assert result.swapped.tolist() == [False] * 4 + [True] * 4
    assert_matches(result, gradient, expected_mixcpt_loss(student, teacher, labels, ALPHA))


def test_large_logits_are_safe() -> None:
    student, teacher, labels = sample()
    student, teacher = student * 1e3 + 1e4, teacher * 1e3 - 1e4
    result, gradient = run(student, teacher, labels)
    expected = expected_mixcpt_loss(student, teacher, labels, ALPHA)
    # Differences of logits of this size are themselves rounded to 1e-3 in float32.
    torch.testing.assert_close(result.loss.double(), expected.loss, rtol=1e-6, atol=2e-3)
    torch.testing.assert_close(gradient.double(), expected.gradient, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("inplace", [False, True])
def test_inputs_are_left_alone_unless_inplace(inplace: bool) -> None:
    student, teacher, labels = sample()
    leaf, kept = student.clone().requires_grad_(), teacher.clone()
    result = vocab_parallel_mixcpt_loss(leaf, kept, labels, alpha=ALPHA, tp_group=None, inplace=inplace)
    assert torch.equal(leaf, student)
    (gradient,) = torch.autograd.grad(result.loss.sum(), leaf)
    assert torch.equal(kept, teacher)
    assert (gradient.data_ptr() == leaf.data_ptr()) == inplace
    assert torch.equal(leaf, gradient if inplace else student)
    _, expected_gradient = run(student, teacher, labels)
    assert torch.equal(gradient, expected_gradient)


def test_student_equal_to_teacher_and_right_has_no_divergence_at_all() -> None:
    student, _, _ = sample()
    result, gradient = run(student, student.clone(), student.argmax(-1), alpha=0.0)
    assert not result.swapped.any()
    assert torch.equal(result.lssd, torch.zeros_like(result.lssd))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("has_teacher", [True, False])
def test_masked_tokens_are_inert(has_teacher: bool) -> None:
    """A token without weight has gradient exactly 0 whatever its label and logits, and leaves the others alone."""
    student, teacher, labels = sample(6)
    labels[1], labels[3] = -100, 10**6
    student[4] = float("nan")
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    _, gradient = run(student, teacher if has_teacher else None, labels, mask)
    kept = mask.bool()
    expected = expected_mixcpt_loss(student[kept], teacher[kept] if has_teacher else None, labels[kept], ALPHA)
    assert torch.equal(gradient[~kept], torch.zeros_like(gradient[~kept]))
    torch.testing.assert_close(gradient[kept].double(), expected.gradient, **GRADIENT_TOLERANCE)


@pytest.mark.parametrize("label", [-100, -1, 1000, 2**40])
def test_a_label_outside_the_vocabulary_is_no_label(label: int) -> None:
    """No next-token prediction and no swap: what remains is the divergence from the teacher as it is."""
    student, teacher, _ = sample(4)
    labels = torch.full((4,), label)
    result, gradient = run(student, teacher, labels)
    expected = expected_mixcpt_loss(student, teacher, torch.zeros(4, dtype=torch.int64), alpha=0.0, swap=False)
    assert torch.equal(result.ntp, torch.zeros(4)) and not result.swapped.any()
    torch.testing.assert_close(result.lssd.double(), expected.lssd, **TOLERANCE)
    torch.testing.assert_close(gradient.double(), (1 - ALPHA) * expected.gradient, **GRADIENT_TOLERANCE)
    assert torch.equal(run(student, None, labels)[1], torch.zeros_like(student))


def test_padding_columns_take_no_part() -> None:
    student, teacher, labels = sample(vocab_size=1000)
    student[:, 990:], teacher[:, 990:] = 1e4, float("nan")
    labels = labels % 990
    result, gradient = run(student, teacher, labels, vocab_size=990)
    expected = expected_mixcpt_loss(student[:, :990], teacher[:, :990], labels, ALPHA)
    assert_matches(result, gradient[:, :990], expected)
    assert torch.equal(gradient[:, 990:], torch.zeros(len(labels), 10))


@pytest.mark.parametrize("per_token", [True, False])
def test_undistilled_samples_get_next_token_prediction_alone(per_token: bool) -> None:
    student, teacher, labels = sample(12)
    distilled = torch.tensor([True, False, True, False])
    options = {"distill_mask": distilled.expand(3, 4) if per_token else distilled, "tp_group": None}
    leaf = student.view(3, 4, -1).clone().requires_grad_()
    result = mixcpt_loss(leaf, teacher.view(3, 4, -1), labels.view(3, 4), objective(), **options)
    (gradient,) = torch.autograd.grad(result.loss.sum(), leaf)
    (with_kl, kl_gradient), (plain, plain_gradient) = run(student, teacher, labels), run(student, None, labels)
    choose = distilled.expand(3, 4).reshape(-1)
    assert torch.equal(result.loss.view(-1), torch.where(choose, with_kl.loss, plain.loss))
    assert torch.equal(result.lssd.view(-1), torch.where(choose, with_kl.lssd, 0.0))
    assert torch.equal(result.swapped.view(-1), choose & with_kl.swapped)
    expected_gradient = torch.where(choose[:, None], kl_gradient, plain_gradient).view_as(gradient)
    torch.testing.assert_close(gradient, expected_gradient, **GRADIENT_TOLERANCE)


def test_vocabulary_above_131072() -> None:
    """Rows of a real vocabulary's width take several blocks and chunks, and far more terms per sum."""
    student, teacher, labels = sample(3, 152_064)
    labels[1] = 152_063
    result, gradient = run(student, teacher, labels)
    assert_matches(result, gradient, expected_mixcpt_loss(student, teacher, labels, ALPHA))


def test_wrong_shapes_and_sizes_are_refused() -> None:
    student, teacher, labels = sample(4, 10)
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) do not fit logits of shape \(4, 10\)"):
        run(student, teacher, labels[:3])
    with pytest.raises(ValueError, match=r"teacher logits of shape \(4, 9\)"):
        run(student, teacher[:, :9], labels)
    with pytest.raises(ValueError, match=r"vocab_size 11 does not fit 1 rank\(s\) of 10 columns"):
        run(student, teacher, labels, vocab_size=11)
    run(student, teacher, labels, vocab_size=10)

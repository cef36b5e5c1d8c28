"""The loss and its gradient against the paper's formulas in float64, in memory that held NaN before."""

import collections

import torch
from torch import Tensor

from benchmarks.gpu.context import Context
from benchmarks.gpu.device import DEVICE, poison
from benchmarks.gpu.reference import expected_loss
from benchmarks.gpu.report import worst
from megatron_mixcpt.losses.lssd import MixCPTLoss, vocab_parallel_mixcpt_loss

ALPHA = 0.8
LOSS_LIMIT = 1e-5
GRADIENT_LIMIT = 1.01
"""Of the error that rounding the exact gradient to bfloat16 makes; it cannot be smaller."""
MOST_COMPILATIONS = 3


def gradients(context: Context) -> None:
    """At each vocabulary: several numbers of tokens, each with fresh inputs, counting what is compiled."""
    for columns, vocab_size in context.sizes.vocab_sizes:
        name = f"{vocab_size:,}" + (f" of {columns:,} columns" if columns != vocab_size else " columns")
        torch._dynamo.reset()
        compilations_before = compilations()
        losses, gradients, poisoned = [], [], []
        for number, num_tokens in enumerate(context.sizes.token_counts):
            student, teacher, labels = inputs(num_tokens, columns, vocab_size, seed=number)
            result, gradient = forward_backward(student, teacher, labels, vocab_size)
            poisoned.append(bool(gradient[:, :vocab_size].isnan().any()) or bool(gradient[:, vocab_size:].any()))
            error = errors(result, gradient, student, teacher, labels, vocab_size, context.sizes.reference_rows)
            losses.append(error[0]), gradients.append(error[1])
        context.report.at_most(f"loss at {name}, largest relative error", worst(losses), LOSS_LIMIT)
        context.report.at_most(f"gradient at {name}, error by that of rounding", worst(gradients), GRADIENT_LIMIT)
        context.report.holds(f"gradient at {name} is written everywhere", not any(poisoned), "NaN or padding was left")
        most = max((compilations() - compilations_before).values(), default=0)
        context.report.at_most(f"compilations of a pass at {name}", most, MOST_COMPILATIONS)


def beyond_int32(context: Context) -> None:
    """More than 2^31 logits, the gradient in the logits' place, against the reference in blocks of rows."""
    num_tokens, columns = context.sizes.int64_shape
    student, teacher, labels = inputs(num_tokens, columns, columns, seed=0)
    kept = student.clone()
    result, gradient = forward_backward(student, teacher, labels, columns, inplace=True)
    context.report.measured("logits", num_tokens * columns)
    error = errors(result, gradient, kept, teacher, labels, columns, context.sizes.reference_rows)
    context.report.at_most("loss, largest relative error", error[0], LOSS_LIMIT)
    context.report.at_most("gradient, error by that of rounding", error[1], GRADIENT_LIMIT)
    context.report.holds("gradient overwrites the logits", gradient.data_ptr() == student.data_ptr(), "it does not")


def inputs(num_tokens: int, columns: int, vocab_size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two models that agree about as trained ones do, in bfloat16, and labels; NaN in the padding."""
    torch.manual_seed(seed)
    student = torch.randn(num_tokens, columns, device=DEVICE, dtype=torch.bfloat16).mul_(3)
    teacher = torch.randn(num_tokens, columns, device=DEVICE, dtype=torch.bfloat16).add_(student)
    for logits in (student, teacher):
        logits[:, vocab_size:] = float("nan")
    return student, teacher, torch.randint(0, vocab_size, (num_tokens,), device=DEVICE)


def forward_backward(
    student: Tensor, teacher: Tensor, labels: Tensor, vocab_size: int, inplace: bool = False
) -> tuple[MixCPTLoss, Tensor]:
    """The losses and the gradient of their sum."""
    if not inplace:
        poison(student)
    leaf = student.detach().requires_grad_()
    options = {"alpha": ALPHA, "tp_group": None, "vocab_size": vocab_size, "inplace": inplace}
    result = vocab_parallel_mixcpt_loss(leaf, teacher, labels, **options)
    (gradient,) = torch.autograd.grad(result.loss.sum(), leaf)
    return result, gradient


def errors(
    result: MixCPTLoss, gradient: Tensor, student: Tensor, teacher: Tensor, labels: Tensor, vocab_size: int, rows: int
) -> tuple[float, float]:
    """The loss's largest relative error, and the gradient's over that of rounding it, in blocks of ``rows``."""
    largest, actual, rounding = [], 0.0, 0.0
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        expected = expected_loss(student[part, :vocab_size], teacher[part, :vocab_size], labels[part], ALPHA)
        for name in ("loss", "ntp", "lssd"):
            exact = getattr(expected, name)
            difference = (getattr(result, name)[part].double() - exact).abs() / exact.abs().clamp(min=1)
            largest.append(difference.max().item())
        actual += (gradient[part, :vocab_size].double() - expected.gradient).square().sum().item()
        rounded = expected.gradient.to(student.dtype).double()
        rounding += (rounded - expected.gradient).square().sum().item()
    return worst(largest), (actual / rounding) ** 0.5


def compilations() -> collections.Counter:
    """How often Dynamo has compiled each function of the losses in this process."""
    metrics = torch._dynamo.utils.get_compilation_metrics()
    ours = [metric for metric in metrics if "megatron_mixcpt" in str(metric.co_filename)]
    return collections.Counter(f"{metric.co_filename}:{metric.co_name}" for metric in ours)

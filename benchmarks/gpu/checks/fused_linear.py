"""The loss from hidden states in chunks: its gradients against float64, and its time beside its matrix products."""

import torch
from torch import Tensor

from benchmarks.gpu.checks.ceilings import measured_ceilings
from benchmarks.gpu.checks.loss import ALPHA
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import DEVICE, in_turn, milliseconds
from benchmarks.gpu.reference import expected_loss, relative_error
from benchmarks.gpu.roofline import fused_linear_flops
from benchmarks.loss.fused_linear import fused as fused_step
from benchmarks.loss.fused_linear import products, unfused
from megatron_mixcpt.losses.fused_linear import Projection, fused_linear_mixcpt_loss
from megatron_mixcpt.objective import Objective


def gradients(context: Context) -> None:
    """Loss, hidden states' and weight's gradients, with chunks that do and do not divide the tokens."""
    num_tokens, hidden_size, columns = context.sizes.fused_linear
    hidden, weight, teacher_hidden, teacher_weight, labels = inputs(num_tokens, hidden_size, columns)
    leaves = hidden, weight
    for chunk in (num_tokens // 4, num_tokens // 3):
        result = fused_linear_mixcpt_loss(
            Projection(hidden, weight), Projection(teacher_hidden, teacher_weight), labels, Objective(alpha=ALPHA),
            tp_group=None, chunk_tokens=chunk,
        )  # fmt: skip
        actual = torch.autograd.grad(result.loss_sum, leaves)
        with torch.no_grad():
            exact_hidden, exact_weight, losses = exact_gradients(context, hidden, weight, teacher_hidden,
                                                                 teacher_weight, labels)  # fmt: skip
        size = f"chunks of {chunk}"
        error = (result.tokens.loss.flatten().double() - losses).abs().max().item()
        # Logits of up to 5 are rounded to bfloat16, by up to 0.016 each.
        context.report.at_most(f"losses in {size}, largest error", error, 0.03, "nats")
        context.report.at_most(
            f"hidden states' gradient in {size}", relative_error(actual[0][:, 0], exact_hidden), 1e-2
        )
        context.report.at_most(f"weight's gradient in {size}", relative_error(actual[1], exact_weight), 1e-2)


def exact_gradients(
    context: Context, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the losses' sum, in float64: hidden states' [n, h] and weight's [v, h] gradient; and the losses [n]."""
    rows, wide, teacher_wide = context.sizes.reference_rows, weight.double(), teacher_weight.double()
    grad_hidden, losses = [], []
    grad_weight = torch.zeros_like(wide)
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        states = hidden[part, 0].double()
        with torch.enable_grad():
            exact = expected_loss(states @ wide.t(), teacher_hidden[part, 0].double() @ teacher_wide.t(),
                                  labels[part, 0], ALPHA)  # fmt: skip
        grad_hidden.append(exact.gradient @ wide)
        grad_weight += exact.gradient.t() @ states
        losses.append(exact.loss)
    return torch.cat(grad_hidden), grad_weight, torch.cat(losses)


def speed(context: Context) -> None:
    """Chunks of several sizes, all logits at once and Liger's two losses, beside the products alone."""
    num_tokens, hidden_size, columns = context.sizes.fused_linear_speed
    tensors = inputs(num_tokens, hidden_size, columns)
    hidden, weight = tensors[:2]
    buffers = [torch.zeros(num_tokens, columns, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    buffers += [torch.zeros_like(hidden[:, 0]), torch.zeros_like(weight)]
    calls = {"products alone": lambda: products(*tensors[:4], *buffers), "all logits": lambda: unfused(*tensors)}
    for chunk in context.sizes.chunk_tokens:
        calls[f"chunks of {chunk}"] = lambda chunk=chunk: fused_step(*tensors, chunk)
    times = in_turn(calls, context.sizes.repeats)
    floor = fused_linear_flops(num_tokens, hidden_size, columns) / measured_ceilings(context).flops * 1e3
    context.report.measured("products at the measured rate of a large one", floor, "ms", expected="22 ms; 31 at 55%")
    for name, taken in times.items():
        allowed = {"products alone": 35.0, "all logits": 40.0}.get(name, 48.0 if name.endswith(" 512") else 42.0)
        context.report.time(name, taken, allowed, note=f"{taken - times['products alone']:+.1f} ms to the products")
    del calls
    buffers.clear()
    for name, loss in liger_losses(context, max(context.sizes.chunk_tokens)):
        try:
            call = loss(tensors)
            context.report.measured(name, milliseconds(call, context.sizes.repeats), "ms")
        except Exception as error:  # a peer's failure is not ours
            context.report.not_run(name, f"{type(error).__name__}: {error}")


def liger_losses(context: Context, chunk: int):
    """Name -> what makes a call of it; none where Liger is not installed."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        context.report.not_run("Liger", error)
        return []

    def cross_entropy(tensors):
        hidden, weight, _, _, labels = tensors
        loss = LigerFusedLinearCrossEntropyLoss()
        return lambda: torch.autograd.grad(loss(weight, hidden[:, 0], labels[:, 0]), (hidden, weight))

    def divergence(tensors):
        hidden, weight, teacher_hidden, teacher_weight, labels = tensors
        loss = LigerFusedLinearJSDLoss(weight_hard_loss=ALPHA, weight_soft_loss=1 - ALPHA, beta=1.0, chunk_size=chunk)
        states = hidden[:, 0], weight, teacher_hidden[:, 0], teacher_weight, labels[:, 0]
        return lambda: torch.autograd.grad(loss(*states), (hidden, weight))

    return [
        ("Liger's fused linear cross-entropy, no teacher", cross_entropy),
        (f"Liger's fused linear divergence, chunks of {chunk}", divergence),
    ]


def inputs(num_tokens: int, hidden_size: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [n, 1, h] and output weights [v, h] of both models in bfloat16, and labels [n, 1]."""
    torch.manual_seed(0)
    options = {"dtype": torch.bfloat16, "device": DEVICE}
    hidden, teacher_hidden = (torch.randn(num_tokens, 1, hidden_size, **options) for _ in range(2))
    weight = torch.randn(columns, hidden_size, **options).mul_(hidden_size**-0.5)
    teacher_weight = torch.randn(columns, hidden_size, **options).mul_(hidden_size**-0.5)
    labels = torch.randint(0, columns, (num_tokens, 1), device=DEVICE)
    return hidden.requires_grad_(), weight.requires_grad_(), teacher_hidden, teacher_weight, labels

"""The loss alone, forward and backward, beside the bytes it must move and beside what other libraries take for it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.checks.ceilings import measured_ceilings
from benchmarks.gpu.checks.loss import ALPHA
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import DEVICE, in_turn, milliseconds
from benchmarks.gpu.roofline import loss_floor_ms
from benchmarks.loss import peers
from megatron_mixcpt.losses.lssd import vocab_parallel_mixcpt_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of student and teacher logits ``[n, v]`` and labels ``[n]``: per token, or the mean."""
MOST_TO_FLOOR, MOST_TO_PARTS = 1.4, 0.5


def beside_peers(context: Context) -> None:
    """Each size: ours beside the parts, in turn, then the others."""
    from megatron_mixcpt.inference.parallel_groups import start_ranks

    start_ranks()
    copy = measured_ceilings(context)
    for columns in context.sizes.loss_vocab_sizes:
        torch._dynamo.reset()
        for num_tokens in context.sizes.loss_tokens:
            size = f"{num_tokens:,} x {columns:,}"
            tensors = _inputs(num_tokens, columns)
            times = in_turn({"ours": partial(_step, ours, *tensors), "parts": partial(_step, from_parts, *tensors)},
                            context.sizes.repeats)  # fmt: skip
            floor = loss_floor_ms(num_tokens, columns, copy)
            note = f"{times['ours']:.2f} ms, {floor:.2f} ms at the copy's rate"
            context.report.time(f"{size}: to the floor", times["ours"] / floor, MOST_TO_FLOOR, "x", note=note)
            note = f"{times['parts']:.2f} ms for the engine's cross-entropy and a KL divergence from parts"
            context.report.time(f"{size}: to parts", times["ours"] / times["parts"], MOST_TO_PARTS, "x", note=note)
            context.report.data[size] = times | {"floor": floor} | _others(context, size, tensors)


def _inputs(num_tokens: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    student = torch.randn(num_tokens, columns, dtype=torch.bfloat16, device=DEVICE).mul_(3)
    teacher = torch.randn(num_tokens, columns, dtype=torch.bfloat16, device=DEVICE).add_(student)
    return student, teacher, torch.randint(0, columns, (num_tokens,), device=DEVICE)


def _step(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    """Forward and backward."""
    leaf = student.detach().requires_grad_()
    torch.autograd.grad(loss(leaf, teacher, labels).sum(), leaf)


def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The paper's loss. Training has the gradient in the logits' place, which would be the next repetition's input."""
    return vocab_parallel_mixcpt_loss(student, teacher, labels, alpha=ALPHA, tp_group=None).loss


def cross_entropy(student: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """The engine's, which copies bfloat16 logits to float32."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    return vocab_parallel_cross_entropy(student.unsqueeze(1), labels.unsqueeze(1)).squeeze(1)


def fused_cross_entropy(student: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """The engine's ``--cross-entropy-loss-fusion``."""
    from megatron.core import parallel_state
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    group = parallel_state.get_tensor_model_parallel_group()
    return fused_vocab_parallel_cross_entropy(student.unsqueeze(1), labels.unsqueeze(1), group).squeeze(1)


def from_parts(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The engine's cross-entropy, and a reverse KL divergence of torch's log-softmaxes in float32; no swap."""
    ntp = cross_entropy(student, teacher, labels)
    log_p, log_q = (torch.log_softmax(logits, -1, dtype=torch.float32) for logits in (student, teacher))
    divergence = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return ALPHA * ntp + (1 - ALPHA) * divergence


def _others(context: Context, size: str, tensors: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Milliseconds of each peer that is installed and fits into memory."""
    losses: dict[str, Callable[[], Loss]] = {
        "engine's cross-entropy, no teacher": lambda: cross_entropy,
        "engine's fused cross-entropy, no teacher": lambda: fused_cross_entropy,
        "loss as written": lambda: peers.loss_as_written,
        "ModelOpt and the engine's cross-entropy": lambda: peers.modelopt_loss(1, ALPHA, cross_entropy),
        "TRL and torch's cross-entropy": lambda: peers.trl_loss(ALPHA),
        "Liger's divergence": lambda: liger_jsd,
    }
    times = {}
    for name, make in losses.items():
        try:
            times[name] = milliseconds(partial(_step, make(), *tensors), context.sizes.repeats, warm_up=2)
            context.report.measured(f"{size}: {name}", times[name], "ms")
        except Exception as error:  # a peer's failure is not ours
            context.report.not_run(f"{size}: {name}", f"{type(error).__name__}: {error}")
    return times


def liger_jsd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Liger's divergence kernel on log-probabilities, and torch's cross-entropy."""
    from liger_kernel.transformers import LigerJSD

    log_p, log_q = (torch.log_softmax(logits, -1, dtype=torch.float32) for logits in (student, teacher))
    ntp = torch.nn.functional.cross_entropy(student.float(), labels)
    return ALPHA * ntp + (1 - ALPHA) * LigerJSD(beta=1.0)(log_p, log_q)

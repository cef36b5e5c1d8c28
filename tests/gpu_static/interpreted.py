"""The kernels that an H100 would get, run in Triton's interpreter, beside the losses computed without a compiler.

All of the path of a GPU runs: passes over the logits, arithmetic per token, what is written at single columns.

    python -m tests.gpu_static.interpreted      # every case, some minutes; the suite runs two of them
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.lssd import mixcpt_loss
from megatron_mixcpt.objective import Divergence, Objective
from megatron_mixcpt.training.pretraining.loss import mixcpt_loss_func
from tests.gpu_static.fake_h100 import in_own_process
from tests.gpu_static.kernels import interpreting

TOKENS = 5
# Whole blocks of columns and a shorter one; padded, the last true column is not the last.
COLUMNS, VOCAB_SIZE = 9 * 1024 + 384, 9 * 1024 + 256


def sample(dtype: torch.dtype, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both models and labels: ties of the teacher's top, its top at the last column, a label that is none."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(2, TOKENS, COLUMNS, generator=generator)).to(dtype).unbind(0)
    student, teacher = student.clone(), teacher.clone()
    labels = torch.randint(0, vocab_size, (TOKENS,), generator=generator)
    teacher[0, 3000] = teacher[0, 100] = 30.0
    teacher[1, vocab_size - 1] = 30.0
    labels[2], labels[3] = -100, vocab_size - 1
    return student, teacher, labels


def forward_backward(
    dtype: torch.dtype, vocab_size: int, objective: Objective, *, teacher: bool = True, inplace: bool = True
) -> tuple[list[Tensor], Tensor]:
    """All of the loss's results, and the gradient; a token whose weight is 0 has a logit that is no number."""
    student, teacher_logits, labels = sample(dtype, vocab_size)
    weights = torch.tensor([1.0, 0.5, 1.0, 2.0, 0.0])
    student[4, 5] = float("nan")
    logits = student.requires_grad_()
    mask = torch.tensor([True, True, True, True, False])
    result = mixcpt_loss(
        logits,
        teacher_logits if teacher else None,
        labels,
        objective,
        tp_group=None,
        vocab_size=vocab_size,
        distill_mask=mask,
        inplace=inplace,
    )
    (gradient,) = torch.autograd.grad(result.loss, logits, weights)
    assert torch.equal(gradient[4], torch.zeros_like(gradient[4]))
    return [part.detach()[:4] for part in result], gradient


def report() -> tuple[list[Tensor], Tensor]:
    """The loss function's report."""
    numbers = torch.rand(9, TOKENS, 2, generator=torch.Generator().manual_seed(0))
    tokens = (*numbers[:3], *(numbers[3:5] > 0.5), *numbers[5:8])
    _, num_tokens, figures = mixcpt_loss_func(
        (numbers[8] > 0.3).float().T,
        torch.tensor([[True], [False]]).expand(2, TOKENS),
        (torch.tensor(5.0), tokens, numbers[7]),
        objective=Objective(),
        kinds=("a", "b"),
        kind=torch.tensor([0, 1]),
    )
    return [num_tokens.float()], torch.stack(list(figures.values()))


CASES = {
    "bfloat16": partial(forward_backward, torch.bfloat16, COLUMNS, Objective()),
    "bfloat16, padded": partial(forward_backward, torch.bfloat16, VOCAB_SIZE, Objective()),
    "forward divergence at a temperature, float32, padded": partial(
        forward_backward,
        torch.float32,
        VOCAB_SIZE,
        Objective(divergence=Divergence(direction="forward", temperature=2.0, teacher_entropy=True)),
        inplace=False,
    ),
    "cross-entropy, padded": partial(forward_backward, torch.bfloat16, VOCAB_SIZE, Objective(), teacher=False),
    "loss function": report,
}


def interpreted(names: Sequence[str]) -> dict[str, Any]:
    """Case -> what the interpreted kernels give, what is expected, and the functions that were compiled.

    For :func:`run`, in a process of its own.
    """
    found = {}
    for name in names:
        case = CASES[name]
        compiled.COMPILE_ELEMENTS, compiled.COMPILE_TOKENS = 10**12, 10**12
        expected = case()
        compiled.COMPILE_ELEMENTS, compiled.COMPILE_TOKENS = 1, 1
        # On a CPU the arithmetic per token is not compiled; here the tensors stand for those of a GPU.
        compiled._CPU = compiled._ACCELERATOR
        torch._dynamo.reset()
        with interpreting() as graphs:
            found[name] = case(), expected, [graph.function for graph in graphs]
    return found


def run(*names: str, timeout_s: float = 280.0) -> dict[str, Any]:
    """What :func:`interpreted` returns, after comparing it.

    Raises:
        AssertionError: a result or a gradient differs by more than rounding.
    """
    results = in_own_process(
        interpreted, names, compiles=True, environment={"TRITON_INTERPRET": "1"}, timeout_s=timeout_s
    )
    for name, ((losses, gradient), (expected_losses, expected_gradient), _) in results.items():
        for loss, expected in zip(losses, expected_losses, strict=True):
            # Sums of 9,600 numbers in another order; losses of some 10 nats.
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
        # The interpreter cuts float32 to bfloat16, which is one unit in the last place away from rounding.
        rounding = {"rtol": 1e-5, "atol": 5e-7} if gradient.dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-6}
        torch.testing.assert_close(gradient, expected_gradient, **rounding, msg=lambda text, n=name: f"{n}: {text}")
    return results


def main() -> None:
    """Compare every case, and print the largest differences."""
    from tests.gpu_static import interpreted as this  # as a module that another process can import by its name

    for name in CASES:
        (losses, gradient), (expected_losses, expected_gradient), functions = this.run(name, timeout_s=900)[name]
        pairs = zip(losses, expected_losses, strict=True)
        loss = max(float((found.double() - expected.double()).abs().max()) for found, expected in pairs)
        worst = float((gradient.double() - expected_gradient.double()).abs().max())
        print(f"{name}: results within {loss:.1e}, gradient within {worst:.1e}; compiled: {', '.join(functions)}")


if __name__ == "__main__":
    main()

"""The pull towards the original weights in one stage: its gradient by hand, without reading anything of the device."""

from types import SimpleNamespace

import torch

from megatron_mixcpt.testing import run_distributed


def test_the_gradient_is_added_without_a_wait() -> None:
    run_distributed(check_gradient, 1, cpu_emulation=True)


def check_gradient() -> None:
    from megatron_mixcpt.training.pretraining.l2 import L2Anchor

    student, original = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    student.weight.main_grad = torch.ones(2, 2)
    chunk = Chunk(student, original, SimpleNamespace(fp16=False, grad_scale_func=refuse))
    anchor = L2Anchor(0.5, torch.distributed.group.WORLD, tp_rank=0, num_chunks=1)
    assert anchor.after_forward(chunk, num_tokens=3.0, num_microbatches=2) is None
    penalty = anchor.after_forward(chunk, num_tokens=4.0, num_microbatches=2)
    difference = (student.weight - original.weight).detach()
    torch.testing.assert_close(student.weight.main_grad, 1 + 2 * 0.5 * 7.0 * difference)
    torch.testing.assert_close(penalty(), 0.5 * 7.0 * difference.square().sum())
    # Only float16 has a loss scale, which is on the device.
    student.weight.main_grad = torch.zeros(2, 2)
    chunk.config = SimpleNamespace(fp16=True, grad_scale_func=lambda loss: torch.tensor([8.0]) * loss)
    anchor.after_forward(chunk, num_tokens=1.0, num_microbatches=1)
    torch.testing.assert_close(student.weight.main_grad, 2 * 0.5 * 8.0 * difference)


class Chunk:
    """A stage, as far as the anchor looks at it."""

    def __init__(self, module: torch.nn.Module, teacher: torch.nn.Module, config: SimpleNamespace) -> None:
        self.module, self.teacher, self.config = module, teacher, config


def refuse(_: float) -> torch.Tensor:
    raise AssertionError("the engine's function returns a tensor of the device")

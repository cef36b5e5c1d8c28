"""The product of all experts of a rank in one call, where rows are spread unevenly: values, gradients and waits."""

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.device import DEVICE, waits_are_errors
from benchmarks.gpu.reference import relative_error
from megatron_mixcpt.models.grouped_linear import grouped_linear, takes_grouped_mm

# Experts, their rows, and the columns of their inputs and results. Some have no rows, and none a round number.
COUNTS = [0, 37, 1, 0, 513, 64, 0, 129]
NUM_IN, NUM_OUT = 512, 256
# Of bfloat16 inputs and results; float32 products may be in TF32, where someone allowed them.
LIMITS = {torch.bfloat16: 1e-2, torch.float32: 1e-4}


def grouped(context: Context) -> None:
    """Both dtypes, beside float64 expert by expert; the second call is watched."""
    for dtype, limit in LIMITS.items():
        torch.manual_seed(1)
        shapes = ((sum(COUNTS), NUM_IN), (len(COUNTS), NUM_OUT, NUM_IN), (sum(COUNTS), NUM_OUT))
        rows, weight, factor = (torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes)
        inputs = (rows.requires_grad_(), weight.requires_grad_())
        name = str(dtype).removeprefix("torch.")
        kernel = "one product" if takes_grouped_mm(*inputs) else "a loop"
        context.report.measured(f"{name}: experts run as", kernel, expected="one product in bfloat16 on Hopper")
        grouped_linear(*inputs, COUNTS)
        with waits_are_errors():
            result = grouped_linear(*inputs, COUNTS)
            found = (result, *torch.autograd.grad(result, inputs, factor))
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        parts = zip(wide[0].split(COUNTS), wide[1], strict=True)
        exact = torch.cat([part @ matrix.T for part, matrix in parts])
        expected = (exact, *torch.autograd.grad(exact, wide, factor.double()))
        for what, one, other in zip(("result", "gradient of rows", "of weights"), found, expected, strict=True):
            context.report.at_most(f"{name}: {what}, relative error", relative_error(one, other.detach()), limit)
        idle = [expert for expert, count in enumerate(COUNTS) if not count]
        context.report.holds(f"{name}: experts without rows have no gradient", not found[2][idle].any())

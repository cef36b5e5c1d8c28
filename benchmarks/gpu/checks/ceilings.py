"""The card's ceilings, measured: what the other checks' times are divided by."""

import importlib.util
import json

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.device import DEVICE, milliseconds
from benchmarks.gpu.roofline import Ceilings


def measure(context: Context) -> None:
    """Copy and product, and which optional libraries are there."""
    report, ceilings = context.report, measured_ceilings(context)
    report.time("copy, lost to 3.0 TB/s", 3.0e12 / ceilings.copy, 1.15, "x", note=f"{ceilings.copy / 1e12:.2f} TB/s")
    report.time("product, lost to 798 TFLOP/s", 798e12 / ceilings.flops, 1.15, "x",
                note=f"{ceilings.flops / 1e12:.0f} TFLOP/s")  # fmt: skip
    for module in ("transformer_engine", "amp_C", "fused_weight_gradient_mlp_cuda"):
        found = "there" if importlib.util.find_spec(module) else "not there"
        report.measured(module, found)
    report.measured("memory of the card", torch.cuda.get_device_properties(0).total_memory / 2**30, "GiB")


def measured_ceilings(context: Context) -> Ceilings:
    """The copy rate, read plus written, and the rate of a bfloat16 product on random data; measured once a call."""
    kept = context.work / "ceilings.json"
    if not kept.exists():
        source = torch.randint(-128, 127, (context.sizes.copy_bytes // 2,), dtype=torch.int8, device=DEVICE)
        target = torch.empty_like(source)
        copy = 2 * source.numel() / milliseconds(lambda: target.copy_(source)) * 1e3
        del source, target
        side = context.sizes.product
        left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
        product = 2 * side**3 / milliseconds(lambda: left @ right) * 1e3
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([copy, product]), encoding="utf-8")
    return Ceilings(*json.loads(kept.read_text(encoding="utf-8")))

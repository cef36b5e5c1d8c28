"""The same trainings with Transformer Engine's layers, and what only they have: packed documents, an FP8 teacher.

In the kit's exercise on a CPU the layers without Transformer Engine stand for it.
"""

import importlib.util
import statistics

from benchmarks.gpu.checks.curves import LOCAL, compare, pretraining_flags
from benchmarks.gpu.checks.step import MOST_FROM_PLAN, NUM_MICROBATCHES, shape_of, steps
from benchmarks.gpu.context import Context
from benchmarks.gpu.report import NotRunError
from benchmarks.gpu.roofline import PEAK_FLOPS, step_flops
from benchmarks.gpu.worlds import tiny_world

LIMIT = 1e-2
"""Of curves in bfloat16, whose layers round at other places."""
COMPARED = ("loss", "ntp loss", "lssd loss")
EXPECTED_SHARE = 0.8
"""The FP8 teacher's share of a step, of that in bfloat16. A guess; half the time of its large products at best."""


def _layers(context: Context) -> list[str]:
    """Flags of the layers with Transformer Engine. Raises NotRunError where it is not there."""
    if context.tiny:
        return LOCAL
    if importlib.util.find_spec("transformer_engine") is None:
        raise NotRunError("Transformer Engine is not installed (benchmarks/gpu/pack.sh packs it)")
    return ["--transformer-impl", "transformer_engine"]


def _train(context: Context, flags: list[str], label: str) -> dict[str, list[float]]:
    argv = [*pretraining_flags(tiny_world(context)), "--bf16", *flags]
    return context.train("pretrain_mixcpt", argv, label)


def _beside_local(context: Context, name: str, flags: list[str]) -> None:
    layers, label = _layers(context), name.replace(" ", "-")
    expected = _train(context, [*flags, *LOCAL], f"{label}-local")
    actual = _train(context, [*flags, *layers], label)
    compare(context, name, actual, {key: expected[key] for key in COMPARED if key in expected}, LIMIT)


def curves(context: Context) -> None:
    """Methods and options whose forward pass differs."""
    for name, flags in {
        "lssd": [],
        "kd": ["--distillation", "kd"],
        "half": ["--distillation-fraction", "0.5"],
        "chunks": ["--loss-chunk-tokens", "24"],
        "offload": ["--teacher-offload", "cpu"],
    }.items():
        _beside_local(context, name, flags)


def packed_documents(context: Context) -> None:
    """Document boundaries handed to the attention kernel, beside the mask of the layers without it."""
    _beside_local(context, "document masking", ["--document-masking"])


def without_apex(context: Context) -> None:
    """No flag chooses the fused gradient: what is installed does."""
    from megatron_mixcpt.training_log import read_log

    layers = ["--transformer-impl", "local"] if context.tiny else _layers(context)
    apex = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    losses = _train(context, layers, "default")["loss"]
    context.report.holds("six steps by default flags", len(losses) == 6, f"{len(losses)} steps")
    fused = read_log(context.scratch / "default.curves").arguments.get("gradient_accumulation_fusion")
    context.report.measured("Apex's weight gradient kernels", "there" if apex else "not there")
    context.report.measured("gradient accumulation fusion", str(fused))


def fp8_teacher(context: Context) -> None:
    """What the teacher adds to a step, in bfloat16 and in 8 bits, and what that does to the loss."""
    layers, fp8 = _layers(context), [] if context.tiny else ["--teacher-fp8"]
    expected, actual = (_train(context, [*layers, *more], f"teacher-{number}") for number, more in enumerate([[], fp8]))
    compare(context, "losses with an FP8 teacher", actual, {key: expected[key] for key in COMPARED}, LIMIT)
    shares = []
    for label, more in (("te", []), ("te-fp8", fp8)):
        found = steps(context, "1b", context.sizes.llama_1b, 1, (*layers, *more), label)
        taken = {method: statistics.median(times) for method, times in found["milliseconds"].items()}
        shares.append((taken["lssd"] - taken["none"]) / NUM_MICROBATCHES)
        context.report.measured(f"{label}: peak memory of lssd", found["peak"]["lssd"] / 2**30, "GiB")
        context.report.measured(f"{label}: teacher's share of a microbatch", shares[-1], "ms")
    context.report.time("FP8 to bfloat16, teacher's share", shares[1] / shares[0], EXPECTED_SHARE, "x")


def step(context: Context) -> None:
    """Time and memory of a step, and the plan."""
    from megatron_mixcpt.planning.layout import Layout
    from megatron_mixcpt.planning.memory import plan_memory

    layers = _layers(context)
    found = steps(context, "1b", context.sizes.llama_1b, 1, tuple(layers), "te")
    taken = {method: statistics.median(times) / NUM_MICROBATCHES for method, times in found["milliseconds"].items()}
    length, shape = context.sizes.seq_length, shape_of(context, "1b")
    flops = step_flops(shape, length, length, distilled=1.0)
    note = f"{flops * 1e3 / taken['lssd'] / PEAK_FLOPS:.0%} of 989 TFLOP/s, the optimizer's step included"
    context.report.time("lssd, a microbatch", taken["lssd"], flops / (0.45 * PEAK_FLOPS) * 1e3, note=note)
    context.report.time("lssd to none", taken["lssd"] / taken["none"], 1.36, "x")
    fused = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    layout = Layout(
        num_gpus=1, bf16=True, seq_length=length, global_batch_size=NUM_MICROBATCHES, gradient_accumulation_fusion=fused
    )
    planned = max(stage.peak for stage in plan_memory(shape, layout))
    difference = abs(planned / found["peak"]["lssd"] - 1)
    note = f"planned {planned / 2**30:.2f} GiB, measured {found['peak']['lssd'] / 2**30:.2f} GiB"
    if context.tiny:
        context.report.measured("plan to peak", difference, note=note)
    else:
        context.report.at_most("plan to peak", difference, MOST_FROM_PLAN, note=note)

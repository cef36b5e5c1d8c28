"""A training step by several methods in one run of the trainer, beside a plain loop with transformers."""

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import device
from benchmarks.gpu.checks.ceilings import measured_ceilings
from benchmarks.gpu.checks.curves import LOCAL
from benchmarks.gpu.context import Context, ModelSize
from benchmarks.gpu.roofline import PEAK_FLOPS, step_flops
from benchmarks.gpu.worlds import random_world

NUM_MICROBATCHES = 4
MOST_TO_NONE = {"lssd": 1.36, "half": 1.2}
LEAST_EFFICIENCY = 0.35
"""Of the card's 989 TFLOP/s that the products of a step reach with layers that are not Transformer Engine's."""
MOST_IDLE, MOST_WAITS = 0.05, 2
MOST_FROM_PLAN = 0.10


def llama_1b(context: Context) -> None:
    """At Llama-3.2-1B's shape."""
    for micro_batch_size in context.sizes.micro_batch_sizes:
        _compare(context, "1b", context.sizes.llama_1b, micro_batch_size)


def smollm2(context: Context) -> None:
    """At SmolLM2-135M's shape, where the host may be the slower one."""
    _compare(context, "smollm2", context.sizes.smollm2, 1)


def _compare(context: Context, name: str, size: ModelSize, micro_batch_size: int) -> None:
    taken = steps(context, name, size, micro_batch_size)["milliseconds"]
    median = {method: statistics.median(times) / NUM_MICROBATCHES for method, times in taken.items()}
    label = f"microbatch {micro_batch_size}"
    num_tokens = micro_batch_size * context.sizes.seq_length
    flops = step_flops(shape_of(context, name), num_tokens, context.sizes.seq_length, distilled=1.0)
    report = context.report
    note = f"{flops / 1e9 / median['lssd'] / PEAK_FLOPS * 1e12:.0%} of 989 TFLOP/s, the optimizer's step included"
    allowed = flops / (LEAST_EFFICIENCY * PEAK_FLOPS) * 1e3 if name == "1b" else 20.0
    report.time(f"{label}: lssd, a microbatch", median["lssd"], allowed, note=note)
    floor = flops / measured_ceilings(context).flops * 1e3
    report.measured(f"{label}: its products at the measured rate of a large one", floor, "ms")
    for method, most in MOST_TO_NONE.items():
        ratios = [a / b for a, b in zip(taken[method], taken["none"], strict=True)]
        report.time(f"{label}: {method} to none", statistics.median(ratios), most, "x", note=f"{median[method]:.1f} ms")
    for method in sorted(median.keys() - {"lssd", "half"}):
        report.measured(f"{label}: {method}, a microbatch", median[method], "ms")
    # With float32 weights, as the trainer's optimizer has them; without, which is cheaper and less exact, once.
    for precision in ("autocast", "bfloat16") if micro_batch_size == 1 else ("autocast",):
        try:
            arguments = _loop_arguments(context, name, size, micro_batch_size, precision == "autocast")
            loop = context.call(
                "benchmarks.gpu.checks.step:run_loop", arguments, f"loop-{micro_batch_size}-{precision}"
            )
        except RuntimeError as error:
            report.not_run(f"{label}: transformers loop, {precision}", error)
            continue
        ratio, note = median["lssd"] / loop, f"{loop:.1f} ms a microbatch"
        if precision == "autocast":
            report.time(f"{label}: lssd to the transformers loop, {precision}", ratio, 1.0, "x", note=note)
        else:
            report.measured(f"{label}: lssd to the transformers loop, {precision}", ratio, "x", note=note)


def _loop_arguments(context: Context, name: str, size: ModelSize, micro_batch_size: int, autocast: bool) -> dict:
    options = {"microbatches": NUM_MICROBATCHES, "micro_batch_size": micro_batch_size}
    options |= {"seq_length": context.sizes.seq_length, "vocab_size": size.vocab_size}
    model, _ = random_world(context, size, name)
    return {"model": str(model), "options": options, "autocast": autocast, "repeats": max(2, context.sizes.rounds // 2)}


def run_loop(model: str, options: dict, autocast: bool, repeats: int) -> float:
    """In a process: milliseconds of a microbatch of the transformers loop."""
    from benchmarks.step.transformers_step import transformers_step

    step = transformers_step(model, options, autocast=autocast, device=device.placement())
    return device.milliseconds(step, repeats, warm_up=2) / options["microbatches"]


def steps(
    context: Context,
    name: str,
    size: ModelSize,
    micro_batch_size: int,
    layers: tuple[str, ...] = tuple(LOCAL),
    label: str = "steps",
) -> dict[str, Any]:
    """A training whose steps take their methods in turn; kept in the work folder for the checks that read it."""
    kept = context.work / f"{label}-{name}-{micro_batch_size}.json"
    if not kept.exists():
        model, mixture = random_world(context, size, name)
        argv = ["--hf-model", str(model), "--mixture", str(mixture), "--bf16", *layers, "--num-workers", "0"]
        argv += ["--seq-length", str(context.sizes.seq_length), "--micro-batch-size", str(micro_batch_size)]
        argv += ["--global-batch-size", str(micro_batch_size * NUM_MICROBATCHES), "--log-interval", "1000"]
        arguments = {"argv": argv, "rounds": context.sizes.rounds, "chunk_tokens": context.sizes.loss_chunk_tokens}
        if micro_batch_size > 1:
            arguments["methods"] = ["none", "half", "lssd"]
        found = context.call("benchmarks.gpu.checks.step:run_steps", arguments, f"{label}-{name}-{micro_batch_size}")
        kept.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def run_steps(argv: list[str], rounds: int, chunk_tokens: int, methods: list[str] | None = None) -> dict[str, Any]:
    """In a process, or on each rank: train; milliseconds and peak bytes of each method's steps, and lssd's profile."""
    from benchmarks.step.methods import METHODS, Method, train_in_turn

    available = METHODS | {"chunks": Method(1.0, chunk_tokens=chunk_tokens)}
    chosen = {name: available[name] for name in methods or available}
    warm_up = 2
    num_steps = (rounds + warm_up + 1) * len(chosen)
    taken = train_in_turn([*argv, "--train-iters", str(num_steps)], chosen, _measured, profiled_round=rounds + warm_up)
    kept = {name: values[warm_up : warm_up + rounds] for name, values in taken.taken.items()}
    profile = device.read_profile(taken.profiles["lssd"]) if "lssd" in taken.profiles else None
    return {
        "milliseconds": {name: [milliseconds for milliseconds, _ in values] for name, values in kept.items()},
        "peak": {name: max(peak for _, peak in values) for name, values in kept.items()},
        "profile": profile and {
            "idle": profile.idle, "span_ms": profile.span_ms, "host_waits": profile.host_waits,
            "kernels": dict(sorted(profile.kernels.items(), key=lambda item: -item[1])[:40]),
        },
    }  # fmt: skip


def _measured(step: partial) -> tuple[object, tuple[float, int]]:
    """What a step returns; its milliseconds on the device and the most memory it held."""
    device.reset_peak()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = step()
    end.record()
    torch.cuda.synchronize()
    return result, (start.elapsed_time(end), device.peak_bytes())


def profile(context: Context) -> None:
    """Of a step of lssd at microbatch 1: how much of it no kernel runs, and where the host waits."""
    found = steps(context, "1b", context.sizes.llama_1b, 1)["profile"]
    context.report.time("idle share of a step", found["idle"], MOST_IDLE, "", note=f"{found['span_ms']:.0f} ms")
    # One at its end, by whoever measures.
    waits = max(0, sum(found["host_waits"].values()) - 1)
    context.report.time("waits of the host in a step", float(waits), MOST_WAITS, "", note=str(found["host_waits"]))
    context.report.data["kernels, ms"] = found["kernels"]
    for kernel, milliseconds in list(found["kernels"].items())[:5]:
        context.report.measured(f"kernel {kernel[:60]}", milliseconds, "ms")


def memory(context: Context) -> None:
    """The peak of a step's allocations beside the plan, with all logits at once and in chunks."""
    found = steps(context, "1b", context.sizes.llama_1b, 1)["peak"]
    for method, chunk_tokens in (("lssd", 0), ("chunks", context.sizes.loss_chunk_tokens)):
        planned = planned_bytes(context, loss_chunk_tokens=chunk_tokens)
        difference = abs(planned / found[method] - 1)
        note = f"planned {planned / 2**30:.2f} GiB, measured {found[method] / 2**30:.2f} GiB"
        if device.on_cpu:  # there the measured one is the process's whole memory
            context.report.measured(f"{method}: plan to peak", difference, "", note=note)
        else:
            context.report.at_most(f"{method}: plan to peak", difference, MOST_FROM_PLAN, "", note=note)


def planned_bytes(context: Context, **settings: Any) -> int:
    """The plan's peak of this run; the teacher's weights are there for every method of it."""
    from megatron_mixcpt.planning.layout import Layout
    from megatron_mixcpt.planning.memory import plan_memory

    layout = Layout(
        num_gpus=1, bf16=True, seq_length=context.sizes.seq_length, global_batch_size=NUM_MICROBATCHES,
        transformer_impl="local", gradient_accumulation_fusion=False, **settings,
    )  # fmt: skip
    return max(stage.peak for stage in plan_memory(shape_of(context, "1b"), layout))


def shape_of(context: Context, name: str) -> Any:
    """The planner's sizes of a random world's model."""
    from megatron_mixcpt.planning.shapes import model_shape

    size = context.sizes.llama_1b if name == "1b" else context.sizes.smollm2
    return model_shape(str(Path(random_world(context, size, name)[0])))

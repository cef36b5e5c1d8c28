"""Forward, loss and backward of the trainer under torch's sync debug mode: the host never waits for the device."""

import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.gpu.checks.curves import LOCAL
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import waits_are_errors
from benchmarks.gpu.worlds import random_world

NUM_MICROBATCHES, NUM_STEPS = 2, 3
# As many tokens as make the loss compile its passes at this vocabulary.
SEQ_LENGTH = 128


def count(context: Context) -> None:
    """A short training with each option that adds work to a microbatch."""
    model, mixture = random_world(context, context.sizes.smollm2, "smollm2")
    argv = ["--hf-model", str(model), "--mixture", str(mixture), "--bf16", "--seq-length", str(SEQ_LENGTH), *LOCAL]
    argv += ["--global-batch-size", str(NUM_MICROBATCHES), "--train-iters", str(NUM_STEPS), "--num-workers", "0"]
    options = {
        "lssd": [],
        "chunks": ["--loss-chunk-tokens", str(SEQ_LENGTH // 2)],
        "document masking": ["--document-masking"],
        "teacher offload": ["--teacher-offload", "cpu"],
    }
    function = "benchmarks.gpu.checks.hidden_waits:train"
    with ThreadPoolExecutor(1 if context.tiny else len(options)) as pool:
        calls = [
            pool.submit(context.call, function, {"argv": [*argv, *flags]}, name.replace(" ", "-"))
            for name, flags in options.items()
        ]
    results = dict(zip(options, (call.result() for call in calls), strict=True))
    for name in options:
        found = results[name]
        expected = NUM_MICROBATCHES * (NUM_STEPS - 1)
        context.report.holds(f"{name}: no wait", found["error"] is None, str(found["error"]))
        if found["error"] is None:
            seen = f"{found['forward']} forward, {found['backward']} backward"
            watched = min(found["forward"], found["backward"]) == expected
            context.report.holds(f"{name}: {expected} microbatches were watched", watched, seen)


def train(argv: list[str]) -> dict[str, Any]:
    """In a process: train; how many passes were watched, and the first wait's place."""
    from megatron.core.pipeline_parallel import schedules

    from megatron_mixcpt.training.pretraining import cpt

    found: dict[str, Any] = {"forward": 0, "backward": 0, "error": None}

    def watched(name: str, call: Any) -> Any:
        calls = iter(range(10**9))

        def within(*args: Any, **kwargs: Any) -> Any:
            # The first step compiles, and libraries pick their kernels.
            if next(calls) < NUM_MICROBATCHES:
                return call(*args, **kwargs)
            try:
                with waits_are_errors():
                    result = call(*args, **kwargs)
            except RuntimeError as error:
                places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
                found["error"] = f"{error} at {' < '.join(places[:-4:-1])}"
                raise
            found[name] += 1
            return result

        return within

    schedules.forward_step = watched("forward", schedules.forward_step)
    schedules.backward_step = watched("backward", schedules.backward_step)
    try:
        cpt.main.__wrapped__(argv)  # which raises, where the tool's own would end the process
    except BaseException:
        if found["error"] is None:
            raise
    return found

"""Several GPUs of one machine: layouts against one rank's curve, checkpoints, signals, speed and messages."""

import json
import os
import signal
import statistics
import time
from pathlib import Path

from benchmarks.gpu.checks.curves import LOCAL, compare, pretraining_flags, recorded
from benchmarks.gpu.checks.step import MOST_TO_NONE
from benchmarks.gpu.context import Context
from benchmarks.gpu.worlds import random_world, tiny_world

NUM_RANKS = 2
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
PP2 = ["--pipeline-model-parallel-size", "2"]
DP2 = ["--use-distributed-optimizer"]
OVERLAP = [*DP2, "--overlap-grad-reduce", "--overlap-param-gather"]
# Small buckets: the output weight has one of its own, as in an 8B model.
CHUNKS = [*OVERLAP, "--loss-chunk-tokens", "24", "--ddp-bucket-size", "50000"]
LAYOUTS = {
    "TP2": TP2,
    "PP2": PP2,
    "PP2 interleaved": [*PP2, "--num-layers-per-virtual-pipeline-stage", "1"],
    "CP2": ["--context-parallel-size", "2"],
    "DP2, both overlaps": OVERLAP,
    "DP2, chunks, both overlaps": CHUNKS,
}
SAVE_EVERY = 5


def curves(context: Context) -> None:
    """Every layout beside the curve that one CPU rank recorded; of the chunks, that of all logits at once."""
    context.needs_ranks(NUM_RANKS)
    world = tiny_world(context)
    expected = recorded(context, world)["lssd"]
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        argv = [*pretraining_flags(world), *LOCAL, *layout]
        compare(context, name, context.train("pretrain_mixcpt", argv, f"layout-{number}", NUM_RANKS), expected)


def context_parallel(context: Context) -> None:
    """Transformer Engine cannot take whole documents of a split sequence: one line says so, before any step."""
    context.needs_ranks(NUM_RANKS)
    layout = ["--context-parallel-size", "2", "--document-masking", "--transformer-impl", "transformer_engine"]
    argv = [*pretraining_flags(tiny_world(context)), "--bf16", *layout]
    code = context.start_training("pretrain_mixcpt", argv, "refused", NUM_RANKS).wait()
    printed = (context.scratch / "refused.log").read_text(errors="replace")
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    context.report.holds("the run ends with an error", code != 0, f"code {code}")
    named = bool(lines) and ("--context-parallel-size" in lines[0] or "Transformer Engine" in lines[0])
    context.report.holds("one line names the flag, or what is missing", named, context.last_words("refused.log"))
    if lines:
        context.report.measured("the line", lines[0])


def async_save(context: Context) -> None:
    """Saved while training goes on, and resumed from there: the curve of the same run saved synchronously."""
    context.needs_ranks(NUM_RANKS)
    argv = [*pretraining_flags(tiny_world(context)), *LOCAL, *DP2, "--deterministic", "--save-interval", "3"]
    found = {}
    for name, flags in (("sync", []), ("async", ["--async-save"])):
        save = ["--save", str(context.scratch / name), *flags]
        found[name] = context.train("pretrain_mixcpt", [*argv, *save], f"{name}-run", NUM_RANKS)
    resume = ["--load", str(context.scratch / "async"), "--ckpt-step", "3", "--save", str(context.scratch / "resumed")]
    found["resumed"] = context.train("pretrain_mixcpt", [*argv, *resume], "resumed-run", NUM_RANKS)
    for key in ("loss", "grad-norm"):
        expected = found["sync"][key]
        context.report.holds(
            f"async save: {key} bit for bit", found["async"][key] == expected, str(found["async"][key])
        )
        note = str(found["resumed"][key])
        context.report.holds(f"resumed from it: {key} bit for bit", found["resumed"][key] == expected[3:], note)


def sigterm(context: Context) -> None:
    """torchrun gets SIGTERM in mid-run; the same command again ends as an undisturbed run does."""
    context.needs_ranks(NUM_RANKS)
    # Long enough that the signal arrives before the end.
    num_steps = 20 if context.tiny else 80
    argv = [*pretraining_flags(tiny_world(context), num_steps), *LOCAL, *TP2, "--deterministic"]
    argv += ["--save-interval", str(SAVE_EVERY)]
    whole = context.train("pretrain_mixcpt", [*argv, "--save", str(context.scratch / "whole")], "whole", NUM_RANKS)
    save = context.scratch / "disturbed"
    disturbed = [*argv, "--save", str(save)]
    process = context.start_training("pretrain_mixcpt", disturbed, "signalled", NUM_RANKS)
    latest = save / "latest_checkpointed_iteration.txt"
    while not latest.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, reached = process.wait(), int(latest.read_text())
    context.report.holds("the run ended early, with an error code", code != 0 and reached < num_steps,
                         f"code {code}, iteration {reached}")  # fmt: skip
    context.report.measured("from the signal to the end", time.monotonic() - began, "s")
    context.report.measured("iteration of its last checkpoint", reached)
    resumed = context.train("pretrain_mixcpt", disturbed, "resumed", NUM_RANKS)
    for key in ("loss", "grad-norm"):
        note = f"from iteration {reached}: {resumed[key][:2]} instead of {whole[key][reached : reached + 2]}"
        context.report.holds(f"the rest of the curve, {key}, bit for bit", resumed[key] == whole[key][reached:], note)


def speed(context: Context) -> None:
    """The two methods in turn at each layout of two ranks."""
    context.needs_ranks(NUM_RANKS)
    model, mixture = random_world(context, context.sizes.llama_1b, "1b")
    for name, layout in (("TP2", TP2), ("PP2", PP2), ("DP2", OVERLAP)):
        ranks = NUM_RANKS if name == "DP2" else 1
        batch = str(context.sizes.ranks_micro_batches * ranks)
        argv = ["--hf-model", str(model), "--mixture", str(mixture), "--bf16", *LOCAL, *layout]
        argv += ["--seq-length", str(context.sizes.seq_length), "--global-batch-size", batch]
        argv += ["--log-interval", "1000", "--num-workers", "0"]
        arguments = {"argv": argv, "rounds": context.sizes.rounds, "chunk_tokens": 0, "methods": ["none", "lssd"]}
        found = context.call("benchmarks.gpu.checks.step:run_steps", arguments, f"steps-{name}", NUM_RANKS)
        taken = found["milliseconds"]
        ratios = [a / b for a, b in zip(taken["lssd"], taken["none"], strict=True)]
        note = ", ".join(f"{method} {statistics.median(times):.0f} ms" for method, times in taken.items())
        context.report.time(f"{name}: lssd to none", statistics.median(ratios), MOST_TO_NONE["lssd"], "x", note=note)
        context.report.measured(f"{name}: idle share of rank 0's lssd step", found["profile"]["idle"])


def messages(context: Context) -> None:
    """Bytes that the two stages send one another for each microbatch, in units of the student's hidden states."""
    context.needs_ranks(NUM_RANKS)
    argv = [*pretraining_flags(tiny_world(context), 2), *LOCAL, *PP2]
    folder = str(context.scratch)
    context.call("benchmarks.gpu.checks.ranks:count_messages", {"argv": argv, "folder": folder}, "count", NUM_RANKS)
    unit = 64 * 256 * 4  # tokens x hidden size x bytes of float32
    for name, rank, expected in (("forward", 0, 2), ("back", 1, 1)):
        sent = json.loads((context.scratch / f"sent-{rank}.json").read_text(encoding="utf-8"))
        sizes = sorted({size / unit for size in sent})
        right = bool(sent) and sizes == [expected]
        context.report.holds(f"{len(sent)} messages {name} of {expected} x the hidden states", right, f"sizes {sizes}")


def count_messages(argv: list[str], folder: str) -> None:
    """On each rank: train, and leave the bytes of every message sent to another stage in ``folder``."""
    import torch.distributed as dist

    from megatron_mixcpt.training.pretraining import cpt

    sent: list[int] = []
    batch_isend_irecv = dist.batch_isend_irecv

    def counting(operations):
        sent.extend(operation.tensor.nbytes for operation in operations if operation.op is dist.isend)
        return batch_isend_irecv(operations)

    dist.batch_isend_irecv = counting
    cpt.main(argv)
    Path(folder, f"sent-{os.environ['RANK']}.json").write_text(json.dumps(sent), encoding="utf-8")

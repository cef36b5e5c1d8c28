"""A deterministic training, the same again, and its second half from a checkpoint, twice: the same bits."""

from benchmarks.gpu.checks.curves import LOCAL, NUM_STEPS, pretraining_flags
from benchmarks.gpu.context import Context
from benchmarks.gpu.worlds import tiny_world

KEYS = ("loss", "ntp loss", "lssd loss", "grad-norm")
SAVED_AT = NUM_STEPS // 2


def twice(context: Context) -> None:
    """In bfloat16, half of the samples distilled: a resumed run must choose the same ones."""
    argv = [*pretraining_flags(tiny_world(context)), *LOCAL, "--bf16", "--deterministic"]
    argv += ["--distillation-fraction", "0.5", "--save-interval", str(SAVED_AT)]
    saves = [context.scratch / f"save-{number}" for number in range(2)]
    whole = [context.train("pretrain_mixcpt", [*argv, "--save", str(save)], save.name) for save in saves]
    _same(context, "the run, again", whole[1], whole[0], first=0)
    for number, save in enumerate(saves):
        resume = ["--load", str(save), "--ckpt-step", str(SAVED_AT), "--save", str(context.scratch / f"next-{number}")]
        resumed = context.train("pretrain_mixcpt", [*argv, *resume], f"resumed-{number}")
        _same(context, f"its second half, resumed ({number + 1})", resumed, whole[0], first=SAVED_AT)


def _same(context: Context, what: str, curves: dict, expected: dict, first: int) -> None:
    for key in KEYS:
        note = f"{curves.get(key)} instead of {expected[key][first:]}"
        context.report.holds(f"{what}: {key} bit for bit", curves.get(key) == expected[key][first:], note)

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
    whole = _trained(context, {save.name: [*argv, "--save", str(save)] for save in saves})
    _same(context, "the run, again", whole["save-1"], whole["save-0"], first=0)
    resumptions = {
        f"resumed-{number}": ["--load", str(save), "--ckpt-step", str(SAVED_AT), "--save", f"{save}-resumed"]
        for number, save in enumerate(saves)
    }
    resumed = _trained(context, {label: [*argv, *flags] for label, flags in resumptions.items()})
    for label, curves in resumed.items():
        _same(context, f"its second half, {label}", curves, whole["save-0"], first=SAVED_AT)


def _trained(context: Context, runs: dict[str, list[str]]) -> dict[str, dict[str, list[float]]]:
    """The curves of each of these command lines. Raises RuntimeError where one fails."""
    trained = context.train_together({label: ("pretrain_mixcpt", argv) for label, argv in runs.items()})
    for curves in trained.values():
        if isinstance(curves, RuntimeError):
            raise curves
    return trained


def _same(context: Context, what: str, curves: dict, expected: dict, first: int) -> None:
    for key in KEYS:
        note = f"{curves.get(key)} instead of {expected[key][first:]}"
        context.report.holds(f"{what}: {key} bit for bit", curves.get(key) == expected[key][first:], note)

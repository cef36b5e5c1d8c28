"""Six steps of every trainer in the tiny world, float32, beside the curves that a CPU recorded (record_curves.py)."""

import json
import math
from pathlib import Path

from benchmarks.gpu.context import Context
from benchmarks.gpu.report import WRONG, Finding, worst
from benchmarks.gpu.worlds import digest, tiny_world

RECORDED = Path(__file__).resolve().parents[1] / "cpu_curves.json"
NUM_STEPS = 6
LIMIT = 1e-4
# Both layers of the engine that need no other package, so that a figure means the same on every machine.
LOCAL = ["--transformer-impl", "local", "--no-gradient-accumulation-fusion"]
KEYS = ("loss", "ntp loss", "lssd loss", "swapped fraction", "grad-norm", "reward margin")
SFT_ROWS, DPO_ROWS = 160, 256


def runs(world: Path) -> dict[str, tuple[str, list[str]]]:
    """Name -> tool and flags of each training."""
    trained = pretraining_flags(world)
    # Slower: at the rate of pre-training, six samples are learned by heart in three steps.
    aligned = ["--hf-model", str(world / "model"), *constant_rate("1e-5"), "--chat-template", "zephyr"]
    aligned += ["--global-batch-size", "6", "--epochs", str(NUM_STEPS), "--num-workers", "0"]
    return {
        "lssd": ("pretrain_mixcpt", trained),
        "kd": ("pretrain_mixcpt", [*trained, "--distillation", "kd"]),
        "l2": ("pretrain_mixcpt", [*trained, "--distillation", "l2"]),
        "half": ("pretrain_mixcpt", [*trained, "--distillation-fraction", "0.5"]),
        "chunks": ("pretrain_mixcpt", [*trained, "--loss-chunk-tokens", "24"]),
        "offload": ("pretrain_mixcpt", [*trained, "--teacher-offload", "cpu"]),
        "masking": ("pretrain_mixcpt", [*trained, "--document-masking"]),
        "sft": ("train_sft", [*aligned, "--sft", str(world / "sft.jsonl"), "--seq-length", str(SFT_ROWS)]),
        "dpo": ("train_dpo", [*aligned, "--dpo", str(world / "dpo.jsonl"), "--seq-length", str(DPO_ROWS)]),
    }


def pretraining_flags(world: Path, steps: int = NUM_STEPS) -> list[str]:
    """Of continual pre-training in the tiny world."""
    folders = {"--hf-model": "model", "--teacher": "teacher", "--mixture": "mixture"}
    argv = [text for flag, folder in folders.items() for text in (flag, str(world / folder))]
    argv += ["--seq-length", "64", "--global-batch-size", "4", "--train-iters", str(steps)]
    return [*argv, *constant_rate(), "--num-workers", "0"]


def constant_rate(rate: str = "1e-3") -> list[str]:
    """A small one: Adam's first steps are the gradients' signs, and differences near zero grow with the rate."""
    return ["--lr", rate, "--lr-decay-style", "constant", "--lr-warmup-fraction", "0", "--log-interval", "1"]


def recorded(context: Context, world: Path) -> dict[str, dict[str, list[float]]]:
    """The CPU's curves; a finding says where they are of another world than this one."""
    content = json.loads(RECORDED.read_text(encoding="utf-8"))
    if content["world"] != digest(world):
        note = "the tiny world made here differs from the recorded one: its curves say nothing"
        context.report.add(Finding("the tiny world", WRONG, note=note))
    return content["curves"]


def all_trainers(context: Context) -> None:
    """Every training."""
    world = tiny_world(context)
    expected = recorded(context, world)
    trained = context.train_together({name: (tool, [*argv, *LOCAL]) for name, (tool, argv) in runs(world).items()})
    for name, curves in trained.items():
        if isinstance(curves, RuntimeError):
            context.report.add(Finding(name, WRONG, note=str(curves)))
        else:
            compare(context, name, curves, expected[name])


def compare(
    context: Context, name: str, curves: dict[str, list[float]], expected: dict[str, list[float]], limit: float = LIMIT
) -> None:
    """One finding: the largest relative difference of any recorded figure at any step."""
    differences = {}
    for key, values in expected.items():
        found = curves.get(key, [])
        if len(found) != len(values):
            note = f"{len(found)} values of {key} instead of {len(values)}"
            context.report.add(Finding(name, WRONG, note=note))
            return
        pairs = zip(found, values, strict=True)
        least = 1.0 if key == "reward margin" else 1e-3
        differences[key] = worst(abs(a - b) / max(abs(b), least) for a, b in pairs)
    key = max(differences, key=lambda key: math.inf if math.isnan(differences[key]) else differences[key])
    context.report.at_most(f"{name}, largest relative difference of a curve", differences[key], limit, note=f"in {key}")

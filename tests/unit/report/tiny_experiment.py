"""A folder as an experiment leaves it: logs, evaluations, a mixture, alignment scores; all with known figures."""

import json
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from tests.distributed.tiny_run import make_mixture
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

# Bits per byte and task scores of the base, and of each method's seeds: (domain text, general text, domain task).
BASE = (1.25, 0.8, 0.40)
METHODS = {
    "cpt": [(1.0, 0.88, 0.50), (1.02, 0.9, 0.52), (0.98, 0.92, 0.54)],
    "mixcpt": [(1.05, 0.8, 0.48), (1.06, 0.79, 0.49), (1.07, 0.81, 0.47)],
}
NUM_ITERATIONS = 10


def make_experiment(root: Path) -> Path:
    """``root`` with ``runs/METHOD/seed-N``, ``evaluations/...``, ``mixture`` and ``scores.jsonl``; returns it."""
    write_results(root / "evaluations" / "base", BASE)
    for method, seeds in METHODS.items():
        for seed, figures in enumerate(seeds, start=1):
            write_results(root / "evaluations" / method / f"seed-{seed}", figures)
            write_log(root / "runs" / method / f"seed-{seed}" / "tensorboard", method, seed)
    save_tiny_tokenizer(root / "tokenizer")
    make_mixture(root / "mixture", root / "tokenizer")
    write_scores(root / "scores.jsonl")
    return root


def write_results(folder: Path, figures: tuple[float, float, float]) -> None:
    """results.json as tools/evaluate.py writes it."""
    domain, general, task = figures
    text = {"path": "x", "documents": 1, "tokens": 9, "bytes": 30, "perplexity": 9.0}
    settings = {"sequence_length": 512, "stride": 256}
    results = {
        "model": {"path": "models/x", "kind": "hf", "iteration": None, "name": "x"},
        "perplexity": {
            "French": text | {"bits_per_byte": domain} | settings,
            "English": text | {"bits_per_byte": general} | settings,
        },
        "tasks": {
            "medicine": {"pubmedqa": {"metric": "acc", "value": task, "stderr": 0.01, "samples": 9, "num_fewshot": 0}},
            "math": {"gsm8k": {"metric": "acc", "value": 0.2, "stderr": None, "samples": 9, "num_fewshot": 5}},
        },
        "settings": {},
        "versions": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def write_log(folder: Path, method: str, seed: int) -> None:
    """A training log as the engine writes it."""
    random = np.random.default_rng(seed)
    with SummaryWriter(str(folder)) as log:
        for name, value in (("distillation", "none" if method == "cpt" else "lssd"), ("seed", seed), ("save", folder)):
            log.add_text(name, str(value))
        for iteration in range(1, NUM_ITERATIONS + 1):
            log.add_scalar("ntp loss", 3 - 0.05 * iteration + 0.05 * random.random(), iteration)
            log.add_scalar("lssd loss", 0.0 if method == "cpt" else 0.4 + 0.01 * iteration, iteration)
            log.add_scalar("lssd loss cpt", 0.0 if method == "cpt" or iteration % 2 else 0.5, iteration)
            log.add_scalar("ntp loss vs samples", 1.0, 2 * iteration)
        for iteration, learned in ((0, 0.0), (5, 0.2), (10, 0.3)):
            for name, teacher, change in (("cpt", 3.0, -learned), ("general", 2.0, learned / 3 + seed / 100)):
                log.add_scalar(f"ntp loss validation-{name}", teacher + change, iteration)
                log.add_scalar(f"teacher ntp loss validation-{name}", teacher, iteration)


def write_scores(path: Path) -> None:
    """Scores as tools/score_alignment.py writes them."""
    random = np.random.default_rng(0)
    for kind, count in (("sft", 200), ("dpo", 60)):
        with open(path, "a", encoding="utf-8") as lines:
            lines.writelines(
                json.dumps({"id": str(i), "kind": kind, "fas": float(np.exp(0.3 * random.standard_normal()))}) + "\n"
                for i in range(count)
            )

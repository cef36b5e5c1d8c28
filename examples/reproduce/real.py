"""The trade-off on SmolLM2-135M, learning French: runs, and what is compared of them. The command is in frontier.py."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.reproduce.runs import (
    DOMAIN,
    LORA_8,
    MIXTURE,
    bits_per_byte,
    figures,
    make_inputs,
    saved,
    train,
    write_json,
)
from examples.reproduce.trade_off import Cell, kept_at_equal_gain, picture, table

ALPHAS = ("0.95", "0.8", "0.5", "0.2")
CURVES = {
    f"{method}-{alpha}": [*MIXTURE, "--distillation", method, "--alpha", alpha]
    for alpha in ALPHAS
    for method in ("lssd", "kd", "l2")
}
# By name METHOD-ALPHA: flags of the trainer. "none" is experience replay alone, the common end of the curves.
POINTS = {
    "none": [*MIXTURE, "--distillation", "none"],
    **CURVES,
    "kd-forward-0.8": [*MIXTURE, "--distillation", "kd", "--divergence", "forward", "--alpha", "0.8"],
    "lora-8": [*LORA_8, "--alpha", "0.8"],
}
COMPARED = (("lssd", "kd"), ("lssd", "none"), ("kd", "none"))


def run(output: Path, points: Sequence[str], seeds: Sequence[int], train_iters: int) -> None:
    """Train and evaluate what is not there yet, seed by seed, and report after each run."""
    make_inputs(output)
    for seed in seeds:
        for point in points:
            train(point, POINTS[point], seed, train_iters, output)
            report(output)


def report(output: Path) -> None:
    """OUTPUT/frontier.json, OUTPUT/frontier.png and a table on the screen, of all runs that were evaluated."""
    done = [path.relative_to(output / "evaluations").as_posix() for path in _evaluated(output)]
    by_run = {name: figures(name, output) for name in ("base", *done)}
    steps = {each["steps"] for name, each in by_run.items() if name != "base"}
    if len(steps) > 1:
        sys.exit(f"error: {output} has runs of {sorted(steps)} steps; runs of one length need an --output of their own")
    cells = [cell(name, output) for name in done]
    write_json(output / "frontier.json", {"runs": by_run, "cells": cells, "kept_at_equal_gain": kept(cells)})
    if not cells:
        return
    picture(
        cells, output / "frontier.png", f"SmolLM2-135M, {DOMAIN}, {steps.pop()} steps", f"bits of {DOMAIN} saved (%)"
    )
    print(table(cells), *map(_line, kept(cells)), sep="\n", flush=True)


def _evaluated(output: Path) -> list[Path]:
    """Folders of evaluations of points, in the order of POINTS."""
    found = [path.parent for path in (output / "evaluations").glob("*/seed-*/results.json")]
    return sorted(
        (path for path in found if path.parent.name in POINTS),
        key=lambda path: (list(POINTS).index(path.parent.name), path.name),
    )


def cell(name: str, output: Path) -> Cell:
    """The evaluation ``POINT/seed-N``: bits saved on the domain, and on average on the other texts, in percent."""
    point, seed = name.split("/seed-")
    gains = saved(bits_per_byte("base", output), bits_per_byte(name, output))
    method, alpha = point, 1.0 if point == "none" else None
    if point in CURVES or point.startswith("kd-forward"):
        method, _, weight = point.rpartition("-")
        alpha = float(weight)
    rest = [gain for text, gain in gains.items() if text != DOMAIN]
    change = sum(rest) / len(rest)
    return {"method": method, "alpha": alpha, "seed": int(seed), "gain": gains[DOMAIN], "change": change}


def kept(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What is kept at equal gain, of each pair of methods that a seed has points of, in percentage points."""
    found = []
    for method, other in COMPARED:
        try:
            number = kept_at_equal_gain(cells, method, other)
        except ValueError:
            continue  # no seed with both, or no gain in common
        found.append({"method": method, "other": other} | number._asdict())
    return found


def _line(number: dict[str, Any]) -> str:
    seeds = ", ".join(f"seed {seed}: {value:+.2f}" for seed, value in number["by_seed"].items())
    return (
        f"{number['method']} minus {number['other']} at equal gain: {number['mean']:+.2f} points, 95% interval "
        f"{number['low']:+.2f} to {number['high']:+.2f} ({seeds})"
    )

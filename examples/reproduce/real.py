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
from examples.reproduce.trade_off import Cell, kept_at_equal_gain, mean_and_margin, picture, table

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
COMPARED = (("lssd", "kd"), ("lssd", "l2"), ("kd", "l2"))


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
    pairs = [*at_equal_alpha(cells, "none"), *at_equal_alpha(cells, "kd")]
    numbers = kept(cells)
    found = {"runs": by_run, "cells": cells, "kept_at_equal_gain": numbers, "at_equal_alpha": pairs}
    write_json(output / "frontier.json", found)
    if not cells:
        return
    picture(
        cells, output / "frontier.png", f"SmolLM2-135M, {DOMAIN}, {steps.pop()} steps", f"bits of {DOMAIN} saved (%)"
    )
    print(table(cells), "", pairs_table(pairs), "", *map(_line, numbers), sep="\n", flush=True)


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


def at_equal_alpha(cells: Sequence[Cell], other: str) -> list[dict[str, Any]]:
    """What each point has more than ``other`` at its alpha (or than "none", which has none), paired by seed: means of
    the differences of gain and change with half of their 95% intervals, and the differences of the seeds."""
    found = []
    points = dict.fromkeys((each["method"], each["alpha"]) for each in cells if each["method"] not in (other, "none"))
    for method, alpha in points:
        beside = {c["seed"]: c for c in cells if c["method"] == other and (other == "none" or c["alpha"] == alpha)}
        own = [c for c in cells if (c["method"], c["alpha"]) == (method, alpha) and c["seed"] in beside]
        if own:
            apart = {key: [c[key] - beside[c["seed"]][key] for c in own] for key in ("gain", "change")}
            margins = {key: mean_and_margin(values) for key, values in apart.items()}
            found.append({"method": method, "alpha": alpha, "minus": other, "by_seed": apart, "mean": margins})
    return found


def pairs_table(pairs: Sequence[dict[str, Any]]) -> str:
    """Markdown: the differences of :func:`at_equal_alpha`."""
    lines = ["| | minus | gain, by seed | mean | change, by seed | mean |", "|---|---|---|---|---|---|"]
    for pair in pairs:
        weight = "" if pair["alpha"] is None else f", {pair['alpha']:g}"
        values = []
        for key in ("gain", "change"):
            mean, margin = pair["mean"][key]
            values += [", ".join(f"{value:+.2f}" for value in pair["by_seed"][key]), f"{mean:+.2f} ± {margin:.2f}"]
        lines.append(f"| `{pair['method']}`{weight} | `{pair['minus']}` | {' | '.join(values)} |")
    return "\n".join(lines).replace(" ± nan", "")


def _line(number: dict[str, Any]) -> str:
    seeds = ", ".join(f"seed {seed}: {value:+.2f}" for seed, value in number["by_seed"].items())
    interval = f", 95% interval {number['low']:+.2f} to {number['high']:+.2f}" if len(number["by_seed"]) > 1 else ""
    return f"{number['method']} minus {number['other']} at equal gain: {number['mean']:+.2f} points{interval} ({seeds})"

"""Held-out losses of the second stage, compared by seed and by sample."""

import json
import statistics
from pathlib import Path
from typing import Any

from examples.reproduce.trade_off import mean_and_margin

PAIRS = (("low", "high"), ("low", "random"), ("high", "random"), ("half", "random"), ("low-perplexity", "random"))


def compared(folder: Path, model: str, over: int = 0) -> dict[str, Any]:
    """Mean response losses (nats per token) before and after by row and seed, the change of each row, and differences
    of rows: see :func:`difference`. ``folder`` is that of ``second_stage.py``; samples count whose response has more
    than ``over`` tokens."""
    before = losses(folder / f"before-{model}" / "heldout.jsonl", over)
    after: dict[str, dict[int, dict[str, float]]] = {}
    for path in sorted(folder.glob("seed-*/*/heldout.jsonl")):
        after.setdefault(path.parent.name, {})[int(path.parents[1].name.removeprefix("seed-"))] = losses(path, over)
    reached = {row: {seed: statistics.mean(each.values()) for seed, each in of.items()} for row, of in after.items()}
    base = {seed: before for of in after.values() for seed in of}
    changes = {row: difference(of, base) for row, of in after.items() if row != "csd"}
    pairs = {f"{one} - {two}": difference(after[one], after[two]) for one, two in PAIRS if {one, two} <= set(after)}
    return {"before": statistics.mean(before.values()), "after": reached, "changes": changes, "pairs": pairs}


def losses(path: Path, over: int) -> dict[str, float]:
    """The loss of each instruction's response given its query, in nats per token, by the sample's id, where the
    response has more than ``over`` tokens."""
    scores = [json.loads(line) for line in path.open(encoding="utf-8")]
    counted = (each for each in scores if each["kind"] == "sft" and each["num_response_tokens"] > over)
    return {each["id"]: each["loss_given_query"] for each in counted}


def difference(one: dict[int, dict[str, float]], two: dict[int, dict[str, float]]) -> dict[str, Any]:
    """``one`` minus ``two``, losses by seed and sample, over the seeds that both have.

    Returns ``mean``; ``by_seed``; ``seed_margin``, half the 95% confidence interval (Student's t) of the seeds' means;
    ``sample_margin``, that of the samples' means over the seeds; ``lower``, the share of samples whose mean is lower in
    ``one``. The first says what another pool would give, the second what other held-out samples would.
    """
    seeds = sorted(set(one) & set(two))
    apart = {seed: {key: loss - two[seed][key] for key, loss in one[seed].items()} for seed in seeds}
    by_seed = {seed: statistics.mean(each.values()) for seed, each in apart.items()}
    by_sample = [statistics.mean(apart[seed][key] for seed in seeds) for key in one[seeds[0]]]
    mean, seed_margin = mean_and_margin(list(by_seed.values()))
    return {
        "mean": mean,
        "by_seed": by_seed,
        "seed_margin": seed_margin,
        "sample_margin": mean_and_margin(by_sample)[1],
        "lower": statistics.mean(each < 0 for each in by_sample),
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: each row's change, then the differences, with the intervals by seed and by sample."""
    lines = [
        f"Before: {found['before']:.4f}",
        "| | by seed | mean | ± by seed | ± by sample | samples lower |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in (found["changes"] | found["pairs"]).items():
        seeds = ", ".join(f"{value:+.4f}" for value in each["by_seed"].values())
        margins = f"{each['seed_margin']:.4f} | {each['sample_margin']:.4f}"
        lines.append(f"| {name} | {seeds} | {each['mean']:+.4f} | {margins} | {each['lower']:.0%} |")
    return "\n".join(lines).replace("nan", "")

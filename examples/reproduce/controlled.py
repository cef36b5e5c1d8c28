"""What the swap of logits buys where every fact is known: methods on a small language, along their whole trade.

    python examples/reproduce/frontier.py controlled --output outputs/controlled

For each seed a small model learns a synthetic language from nothing (``synthetic_language.py``, ``small_model.py``).
Each method then trains it on the same mixture of domain and replayed general text, at several weights of next-token
prediction. ``gain`` is what the domain's answers won in probability and ``change`` what happened to the answers of the
rest, facts of which neither the domain nor the replay speaks, both in percentage points. What the domain says of a fact
is, for the base model, contradicted, unsure or confirmed; each run measures the three kinds, and in further regimes the
domain is of one kind only.

    OUTPUT/base/seed-N                            the base model, in Hugging Face format
    OUTPUT/REGIME/cells/METHOD-ALPHA/seed-N.json  one run; what is there is not run again
    OUTPUT/figures.json, OUTPUT/REGIME*.png       all runs, what is kept at equal gain, and the pictures
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from examples.reproduce.small_model import Budget, Method, learn, measure, train_base
from examples.reproduce.synthetic_language import KINDS, Language
from examples.reproduce.trade_off import Cell, kept_at_equal_gain, picture, table
from megatron_mixcpt.jobs.whole_outputs import whole_folder, write_whole

ALPHAS = (0.95, 0.8, 0.5, 0.2)
# The regime -> the kinds of facts of which its domain speaks.
MAIN = "mixed"
REGIMES = {MAIN: KINDS, **{kind: (kind,) for kind in KINDS}}
METHODS = ("lssd", "kd", "l2")
RIVALS = ("kd-forward", "ewc")
SDFT = Method("sdft", 0.0)
SHARES = (1.0, 0.5, 0.25)
"""The domain's share of the rows, of experience replay alone: 0.75 is the method ``none``, and 1 is no replay."""


def run(
    output: Path,
    seeds: Sequence[int] = tuple(range(1, 11)),
    *,
    regimes: Sequence[str] = tuple(REGIMES),
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Run what is not there yet, on one thread, then write figures and pictures. Returns the figures."""
    torch.set_num_threads(1)
    budget = budget or Budget()
    for regime in regimes:
        for seed in seeds:
            _run_seed(output / regime, regime, seed, budget)
    return summarize(output, seeds, regimes, budget)


def methods_of(regime: str) -> Iterator[Method]:
    """All methods where the domain is mixed; where it is of one kind, what tells whether the swap helps."""
    yield Method("none", 1.0)
    names = (*METHODS, *RIVALS) if regime == MAIN else ("lssd", "kd")
    yield from (Method(name, alpha) for name in names for alpha in ALPHAS)
    if regime == MAIN:
        yield from (Method("replay", share) for share in SHARES)


def _run_seed(folder: Path, regime: str, seed: int, budget: Budget) -> None:
    """All methods on one language; its base model is trained only if a run is missing, and shared by the regimes."""
    missing = [method for method in methods_of(regime) if not cell_path(folder, method, seed).exists()]
    if not missing:
        return
    language = Language(seed, domain_kinds=REGIMES[regime])
    base = _base(folder.parent, language, seed, budget)
    before = measure(base, language)
    for method in missing:
        started = time.process_time()
        after = measure(learn(base, language, method, seed, budget), language)
        cell = {**cell_of(method, seed, before, after, REGIMES[regime]), "cpu_s": time.process_time() - started}
        write(cell_path(folder, method, seed), cell)
        line = f"gain {cell['gain']:+.1f}, change on the rest {cell['change']:+.1f} points, {cell['cpu_s']:.1f} s"
        print(f"{time.strftime('%H:%M:%S')} {regime}, {method.name} {method.alpha:g}, seed {seed}: {line}", flush=True)


def _base(output: Path, language: Language, seed: int, budget: Budget) -> LlamaForCausalLM:
    """The base model of a seed, read where it was trained before: the domain has no part in it."""
    folder = output / "base" / f"seed-{seed}"
    if not folder.exists():
        model = train_base(language, seed, budget)
        with whole_folder(folder) as aside:
            model.save_pretrained(aside)
        found = measure(model, language)
        said = ", ".join(f"{kind} {found[kind]['probability']:.0f}%" for kind in found)
        print(f"{time.strftime('%H:%M:%S')} base, seed {seed}: probability of the domain's answer {said}", flush=True)
    return LlamaForCausalLM.from_pretrained(folder)


def cell_of(method: Method, seed: int, before: dict, after: dict, kinds: Sequence[str]) -> Cell:
    """Gain of the domain's kinds together and change of the rest; by group of facts, both models' answers."""
    won = {group: after[group]["probability"] - before[group]["probability"] for group in after}
    saved = {group: before[group]["bits"] - after[group]["bits"] for group in after}
    return {
        "method": method.name,
        "alpha": method.alpha,
        "seed": seed,
        "gain": sum(won[kind] for kind in kinds) / len(kinds),
        "change": won["rest"],
        "gain_bits": sum(saved[kind] for kind in kinds) / len(kinds),
        "change_bits": saved["rest"],
        "before": before,
        "after": after,
    }


def cell_path(folder: Path, method: Method, seed: int) -> Path:
    """Where a run of the regime ``folder`` is kept."""
    return folder / "cells" / f"{method.name}-{method.alpha:g}" / f"seed-{seed}.json"


def write(path: Path, value: Any) -> None:
    """``value`` as indented JSON, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1) + "\n")


def summarize(output: Path, seeds: Sequence[int], regimes: Sequence[str], budget: Budget) -> dict[str, Any]:
    """Figures, tables and pictures of what was run."""
    figures: dict[str, Any] = {"budget": asdict(budget), "regimes": {}}
    for regime in regimes:
        cells = read_cells(output / regime, regime, seeds)
        figures["regimes"][regime] = {"kept": kept(cells, regime), "cells": [_of_cell(cell) for cell in cells]}
        print(f"\n{regime}\n{table(cells)}\n" + "\n".join(_said(figures["regimes"][regime]["kept"])), flush=True)
        draw(cells, regime, output)
    write(output / "figures.json", figures)
    return figures


def draw(cells: Sequence[Cell], regime: str, output: Path) -> None:
    """The methods' curves: against the gain on all of the domain and, if it is mixed, on each kind."""
    drawn = [cell for cell in cells if cell["method"] in ("none", *METHODS)]
    ylabel = "change on the rest (points)"
    label = "gain on the domain's answers (points)"
    picture(drawn, output / f"{regime}.png", f"A small language, domain: {regime}", xlabel=label, ylabel=ylabel)
    for kind in REGIMES[regime] if regime == MAIN else ():
        of_kind = [cell | {"gain": _won(cell, kind)} for cell in drawn]
        label = f"gain on {kind} facts (points)"
        picture(of_kind, output / f"{regime}-{kind}.png", f"Of the mixed domain: {kind}", xlabel=label, ylabel=ylabel)


def _of_cell(cell: Cell) -> Cell:
    """What figures.json says of a run: instead of both models' answers what was won by group of facts, in points."""
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in cell.items()}
    left_out = ("before", "after", "losses")
    won = {group: round(_won(cell, group), 2) for group in cell["after"]}
    return {key: value for key, value in rounded.items() if key not in left_out} | {"won": won}


def read_cells(folder: Path, regime: str, seeds: Sequence[int]) -> list[Cell]:
    """The runs that are there, also those of ``benchmarks/rivals/sdft.py``."""
    methods = [*methods_of(regime), SDFT]
    paths = [cell_path(folder, method, seed) for method in methods for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def kept(cells: Sequence[Cell], regime: str) -> dict[str, Any]:
    """What lssd keeps more than kd, and every other method more than kd, at equal gain: of all the domain in points and
    in bits, and at equal gain of each kind."""
    views = {"all": cells, "in bits": [cell | _in_bits(cell) for cell in cells]}
    views |= {kind: [cell | {"gain": _won(cell, kind)} for cell in cells] for kind in REGIMES[regime]}
    found = dict.fromkeys(cell["method"] for cell in cells if cell["alpha"] is not None)
    names = [name for name in found if name not in ("none", "kd")]
    return {
        view: {f"{name} - kd": _kept(seen, name, "kd") for name in (names if view == "all" else ["lssd"])}
        for view, seen in views.items()
    }


def _kept(cells: Sequence[Cell], method: str, other: str) -> dict[str, Any]:
    try:
        return kept_at_equal_gain(cells, method, other)._asdict()
    except ValueError as error:
        return {"none": str(error)}


def _in_bits(cell: Cell) -> dict[str, float]:
    return {"gain": cell["gain_bits"], "change": cell["change_bits"]}


def _won(cell: Cell, kind: str) -> float:
    return cell["after"][kind]["probability"] - cell["before"][kind]["probability"]


def _said(found: dict[str, Any]) -> Iterator[str]:
    for view, pairs in found.items():
        for pair, one in pairs.items():
            text = one["none"] if "none" in one else f"{one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"
            yield f"kept at equal gain, {view}, {pair}: {text}"

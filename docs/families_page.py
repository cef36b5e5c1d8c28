"""The page of families: what models there are, from the registry, and what was measured of each, from the record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from megatron_mixcpt.flags import field_docstrings
from megatron_mixcpt.models.options import ModelOptions

RECORDS = Path(__file__).resolve().parent / "evidence/results/families"

HEAD = """# Families of models

<!-- Written by docs/generate_reference.py: change the tables in megatron_mixcpt/conversion/architectures. -->

A model folder's config.json names its architecture. These can be trained, scored, evaluated, converted and exported, at
every layout. What cannot be expressed exactly is refused with the setting's name, never approximated; the last column
names what is refused beyond what [all families refuse](architectures.md). To add a family see [Add an
architecture](../how-to/add-architecture.md).

| `architectures` in config.json | models | refused where set |
|---|---|---|
"""
PROOFS = """
## What was measured

Tiny random models of each family, in float32 on the CPU over gloo, beside transformers. `logits` is the largest
difference over the layouts beside it, over the largest logit where that is above 1; `gradient` the relative difference
of the norm of a next-token loss's gradient; `first iteration` the largest relative difference of loss, its two parts
and gradient norm of the first iteration of continual pre-training with a teacher, over the layouts beside it. What each
layout saved was exported and compared bit for bit with the source, and transformers generated the same tokens from the
export.

    OMP_NUM_THREADS=1 python benchmarks/parity/families.py
    OMP_NUM_THREADS=1 python benchmarks/parity/first_iteration.py

| kind | logits | layouts | gradient | first iteration | layouts |
|---|---|---|---|---|---|
"""
OPTIONS = """
## Layer options

What differs between families is named once as an option of `megatron_mixcpt/models/options.py`, or as an argument of
the engine. In the equations x is a layer's input, f attention or the MLP with the norm before it, and h a head's
channels. The families are those of which a model in the table above has the option.

| option | what it does | families |
|---|---|---|
"""


def families_page() -> str:
    """The page as Markdown."""
    kinds = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))}
    rows = [HEAD, *map(_family, ARCHITECTURES.values())]
    proofs = [PROOFS, *(_proof(kind, found) for kind, found in kinds.items())]
    return "".join([*rows, *proofs, OPTIONS, *_options(kinds)])


def _family(architecture: Architecture) -> str:
    return f"| `{architecture.name}` | {architecture.models} | {architecture.refused} |\n"


def _proof(kind: str, found: dict[str, Any]) -> str:
    layouts, trained = found["layouts"], found["first iteration"]
    logits = max(max(figures["logits"], figures["released"]) for figures in layouts.values())
    gradient = layouts["1x1"]["grad-norm"]
    first = f"{max(trained.values()):.1e}" if trained else ""
    return f"| {kind} | {logits:.1e} | {', '.join(layouts)} | {gradient:.1e} | {first} | {', '.join(trained)} |\n"


def _options(kinds: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, text in field_docstrings(ModelOptions).items():
        families = dict.fromkeys(found["architecture"] for found in kinds.values() if name in found["options"])
        shown = ", ".join(family.removesuffix("ForCausalLM") for family in families)
        prose = " ".join(text.replace("``", "`").split())
        yield f"| `{name}` | {prose} | {shown} |\n"

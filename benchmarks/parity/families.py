"""The proofs of every family of models as figures: conversion, logits, gradients, checkpoints and exports.

    OMP_NUM_THREADS=1 python benchmarks/parity/families.py                                # everything, minutes
    OMP_NUM_THREADS=1 python benchmarks/parity/families.py --kinds gemma3 olmo2 --layouts 1x1 TP2+SP
    OMP_NUM_THREADS=1 python benchmarks/parity/families.py --kinds gemma3 --record --training first_iteration.json

Tiny random models go through what tests/distributed/families.py describes, and are compared with transformers in
float32. A row is a kind of model at a layout: `logits` of weights read from the model folder and `released` of weights
read through a converted release are the largest differences, over the largest logit where that is above 1; `grad-norm`
and `embedding gradient` are relative differences of the gradient of a next-token loss, at 1x1. `exported` says whether
what the engine saved at the layout equals the source in every bit. The line `on disk` of a kind says whether bfloat16
survives the way to Megatron and back, and whether transformers generates the same tokens from the export.

With `--record` the figures of each kind go into docs/evidence/results/families/KIND.json, from which
docs/generate_reference.py makes the table in the documentation. `--training` adds to them what first_iteration.py
beside this has written: the largest relative difference of the first iteration's losses and gradient norm, for each
layout.

The exit status is 1 where a figure exceeds 1e-5 (gated delta nets: 3e-5) or a row fails.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from megatron_mixcpt import testing  # noqa: E402
from megatron_mixcpt.conversion.hf_model_folder import read_config  # noqa: E402
from megatron_mixcpt.models.options import ModelOptions  # noqa: E402
from tests.distributed.families import LAYOUTS, export, figures_at, generate, make_folder, round_trip, tolerance_of  # noqa: E402
from tests.distributed.tiny_models import KINDS, architecture_of, has_experts  # noqa: E402

RECORDS = ROOT / "docs/evidence/results/families"


def main() -> None:
    """Print a row for each kind and layout, and a line for what is on disk; write the record where asked for."""
    args = _parser().parse_args()
    testing.PRELOADED.append("tests.rank_preload")
    disable_progress_bar()
    records: dict[str, dict[str, Any]] = {kind: {"architecture": architecture_of(kind)} for kind in args.kinds}
    with tempfile.TemporaryDirectory(prefix="families_") as folder:
        for kind in args.kinds:
            make_folder(kind, Path(folder))
            records[kind]["options"] = _options_of(Path(folder, kind, "hf"))
        for layout in args.layouts:
            for kind, figures in _at(layout, args.kinds, Path(folder)).items():
                records[kind].setdefault("layouts", {})[layout] = figures
                print(f"{kind:20} {layout:9} {_shown(figures)}", flush=True)
        for kind in args.kinds:
            on_disk = _on_disk(kind, Path(folder))
            records[kind] |= on_disk
            print(f"{kind:20} {'on disk':9} {_shown(on_disk)}", flush=True)
    if args.record:
        _write(records, args.training)
    sys.exit(not all(_is_good(kind, record) for kind, record in records.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--record", action="store_true", help=f"write to {RECORDS.relative_to(ROOT)}")
    parser.add_argument("--training", type=Path, nargs="+", default=[], help="JSON files that first_iteration.py wrote")
    return parser


def _options_of(folder: Path) -> list[str]:
    """The options that a model has, by their names in ``ModelOptions``."""
    options, plain = vars(read_config(folder).options), vars(ModelOptions())
    return [name for name in options if options[name] != plain[name] and name != "rope"]


def _at(layout: str, kinds: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of all kinds that the layout fits; one run for all, or one for each where that fails."""
    fitting = [kind for kind in kinds if has_experts(kind) or LAYOUTS[layout].expert == 1]
    start = time.monotonic()
    try:
        found = figures_at(layout, fitting, folder, folder / layout, timeout_s=30 + 20 * len(fitting))
    except Exception as error:
        if len(fitting) > 1:
            return {kind: _at(layout, [kind], folder / "alone")[kind] for kind in _copied(fitting, folder)}
        found = {kind: {"failed": str(error).strip().splitlines()[-1]} for kind in fitting}
    seconds = (time.monotonic() - start) / max(1, len(fitting))
    return {kind: {**figures, "seconds": round(seconds, 1)} for kind, figures in found.items()}


def _copied(kinds: Sequence[str], folder: Path) -> Sequence[str]:
    """The kinds, whose folders are then in ``alone`` as well, where nothing of a failed run is."""
    (folder / "alone").mkdir(exist_ok=True)
    for kind in kinds:
        if not (folder / "alone" / kind).exists():
            (folder / "alone" / kind).symlink_to(folder / kind, target_is_directory=True)
    return kinds


def _on_disk(kind: str, folder: Path) -> dict[str, Any]:
    export(folder / kind / "release", folder / kind / "exported", folder / kind / "hf")
    same = generate(folder / kind / "exported") == generate(folder / kind / "hf")
    trip = round_trip(kind, folder / f"{kind}-bfloat16", torch.bfloat16)
    return {"round trip": trip, "generates the same": same}


def _shown(figures: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.1e}" if _is_figure(key, value) else f"{key} {value}" for key, value in figures.items()
    )


def _is_figure(key: str, value: Any) -> bool:
    return isinstance(value, float) and key != "seconds"


def _is_good(kind: str, record: dict[str, Any]) -> bool:
    """Whether nothing failed or differs, and all figures are within the tolerance."""
    items = [record, *record["layouts"].values()]
    wrong = [figures for figures in items if "failed" in figures or False in figures.values()]
    figures = [value for item in items for key, value in item.items() if _is_figure(key, value)]
    return not wrong and max(figures, default=0.0) <= tolerance_of(kind)


def _write(records: dict[str, dict[str, Any]], training: Sequence[Path]) -> None:
    cells = [cell for path in training for cell in json.loads(path.read_text())["cells"] if "off" in cell]
    RECORDS.mkdir(exist_ok=True)
    for kind, record in records.items():
        path = RECORDS / f"{kind}.json"
        known = json.loads(path.read_text())["first iteration"] if path.exists() else {}
        first = known | {cell["layout"]: max(cell["off"].values()) for cell in cells if cell["kind"] == kind}
        for figures in record["layouts"].values():
            figures.pop("seconds", None)
        versions = {name: version(name) for name in ("torch", "transformers", "megatron-core")}
        path.write_text(json.dumps({**record, "first iteration": first, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The proofs of every family of models as figures: conversion, logits, gradients, checkpoints and exports.

    OMP_NUM_THREADS=1 python benchmarks/parity/families.py                                # everything, minutes
    OMP_NUM_THREADS=1 python benchmarks/parity/families.py --kinds gemma3 olmo2 --layouts 1x1 TP2+SP
    OMP_NUM_THREADS=1 python benchmarks/parity/families.py --output families.json

Tiny random models go through what tests/distributed/families.py describes, and are compared with transformers in
float32. A row is a kind of model at a layout: `logits` of weights read from the model folder and `released` of weights
read through a converted release are the largest differences, over the largest logit where that is above 1; `grad-norm`
and `embedding` are relative differences of the gradient of a next-token loss, at 1x1. `exported` says whether what the
engine saved at the layout equals the source in every bit. The line of a kind after its layouts says whether bfloat16
survives the way to Megatron and back, and whether transformers generates the same tokens from the export.

The exit status is 1 where a figure exceeds 1e-5 or a row fails. First training losses: first_iteration.py beside this.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from megatron_mixcpt import testing  # noqa: E402
from megatron_mixcpt.conversion.convert import convert_to_hf  # noqa: E402
from tests.distributed.families import LAYOUTS, figures_at, generate, make_folder, round_trip  # noqa: E402
from tests.distributed.tiny_models import KINDS, architecture_of  # noqa: E402

TOLERANCE = 1e-5


def main() -> None:
    """Print a row for each kind and layout, and write all of them to `--output` after each kind."""
    args = _parser().parse_args()
    testing.PRELOADED.append("tests.rank_preload")
    disable_progress_bar()
    records: dict[str, Any] = {}
    for kind in args.kinds:
        with tempfile.TemporaryDirectory(prefix="families_") as folder:
            record: dict[str, Any] = {"architecture": architecture_of(kind), "layouts": {}}
            for layout, figures in _layouts_of(kind, args, Path(folder)):
                record["layouts"][layout] = figures
                print(f"{kind:20} {layout:9} {_shown(figures)}", flush=True)
            record |= _on_disk(kind, Path(folder))
            print(f"{kind:20} {'on disk':9} {_shown(record)}", flush=True)
        records[kind] = record
        if args.output:
            _write(args.output, records)
    sys.exit(not all(_is_good(record) for record in records.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, metavar="LAYOUT", help="default: all that fit")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    return parser


def _layouts_of(kind: str, args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    make_folder(kind, folder)
    has_experts = hasattr(KINDS[kind]().get_text_config(), "num_experts_per_tok")
    fitting = [name for name, sizes in LAYOUTS.items() if has_experts or sizes.expert == 1]
    for layout in args.layouts or fitting:
        start = time.monotonic()
        try:
            figures = figures_at(layout, [kind], folder, folder / layout)[kind]
        except Exception as error:
            figures = {"failed": str(error).strip().splitlines()[-1]}
        yield layout, {**figures, "seconds": round(time.monotonic() - start, 1)}


def _on_disk(kind: str, folder: Path) -> dict[str, Any]:
    convert_to_hf(folder / kind / "release", folder / kind / "exported")
    same = generate(folder / kind / "exported") == generate(folder / kind / "hf")
    return {"round trip": round_trip(kind, folder / "bfloat16", torch.bfloat16), "generates the same": same}


def _shown(figures: dict[str, Any]) -> str:
    simple = {key: value for key, value in figures.items() if not isinstance(value, dict)}
    return "  ".join(
        f"{key} {value:.1e}" if _is_figure(key, value) else f"{key} {value}" for key, value in simple.items()
    )


def _is_figure(key: str, value: Any) -> bool:
    return isinstance(value, float) and key != "seconds"


def _is_good(record: dict[str, Any]) -> bool:
    """Whether nothing failed or differs, and all figures are within the tolerance."""
    items = [record, *record["layouts"].values()]
    wrong = [figures for figures in items if "failed" in figures or False in figures.values()]
    figures = [value for item in items for key, value in item.items() if _is_figure(key, value)]
    return not wrong and max(figures, default=0.0) <= TOLERANCE


def _write(path: Path, records: dict[str, Any]) -> None:
    versions = {name: version(name) for name in ("torch", "transformers", "megatron-core")}
    path.write_text(json.dumps({"versions": versions, "kinds": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The real training entry beside transformers: tiny random models of many kinds, on many layouts of gloo ranks.

    OMP_NUM_THREADS=1 python benchmarks/parity/first_iteration.py                        # everything, minutes
    OMP_NUM_THREADS=1 python benchmarks/parity/first_iteration.py --list                 # the names of what there is
    OMP_NUM_THREADS=1 python benchmarks/parity/first_iteration.py --kinds llama phi3 --layouts 1x1 TP2+SP
    OMP_NUM_THREADS=1 python benchmarks/parity/first_iteration.py --iterations 20 --options documents --output a.json

Each cell of the table is one run of tools/pretrain_mixcpt.py's main function with a teacher, in float32. Its first
iteration is compared with a dense computation by transformers and PyTorch that shares nothing with the package but the
order of the samples (tests/distributed/dense_iteration.py): the loss, its two parts and the norm of the gradient, which
all parameters enter. `off` is the largest relative difference of the four. With `--iterations` above 1, the second
`loss` is the largest relative difference of the loss from the run on one rank with the same options, over all
iterations, and `curves` that of all four.

Where routers choose experts, two layouts round scores that are almost equal to different sides: a token then goes to
another expert, and the curves part. In the kinds that end in `-all` every expert is chosen and nothing can part so.

A cell that the program refuses shows the refusal; one that fails shows the last line of the failure. The exit status is
1 where a difference exceeds its tolerance or a cell fails, and 0 otherwise, refusals included.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils.logging import disable_progress_bar  # noqa: E402

from megatron_mixcpt import testing  # noqa: E402
from megatron_mixcpt.testing import RankFailedError, run_distributed  # noqa: E402
from tests.distributed.dense_iteration import expected_first_iteration  # noqa: E402
from tests.distributed.tiny_models import KINDS, has_experts  # noqa: E402
from tests.distributed.tiny_run import curves, flags, make_world, train_rank  # noqa: E402

TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
PP2 = ["--pipeline-model-parallel-size", "2"]
CP2 = ["--context-parallel-size", "2"]
EP2 = ["--expert-model-parallel-size", "2", "--moe-token-dispatcher-type", "alltoall"]
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "1x1": (1, []),
    "TP2+SP": (2, TP2),
    "PP2": (2, PP2),
    "PP2 interleaved": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
    "CP2": (2, CP2),
    "CP4": (4, ["--context-parallel-size", "4"]),
    "TP2xCP2": (4, [*TP2, *CP2]),
    "CP2xPP2": (4, [*CP2, *PP2]),
    "EP2": (2, EP2),
    "EP2 all-gather": (2, EP2[:2]),
    "EP2xETP1 on TP2": (2, [*TP2, *EP2, "--expert-tensor-parallel-size", "1"]),
    "TP2xEP2": (4, [*TP2, *EP2]),
}
OPTIONS: dict[str, list[str]] = {
    "recompute": [
        *("--recompute-granularity", "full", "--recompute-method", "uniform"),
        *("--recompute-num-layers", "1"),
    ],
    "selective-recompute": ["--recompute-granularity", "selective"],
    "distributed-optimizer": ["--use-distributed-optimizer"],
    "chunked-loss": ["--loss-chunk-tokens", "16"],
    "documents": ["--document-masking"],
}
"""What can be added to every layout; only `documents` changes the numbers, and those of the reference with them."""
KEYS = ("loss", "ntp loss", "lssd loss", "grad-norm")
FIRST_TOLERANCE, CURVES_TOLERANCE = 2e-4, 1e-3
HEADER = (
    f"{'kind':18} {'layout':34} {'loss':>9} {'ntp':>9} {'lssd':>9} {'grad-norm':>9} {'off':>8} "
    f"{'loss':>8} {'curves':>8} {'s':>5}"
)


def main() -> None:
    """Run the cells asked for, print each as it ends, and write all of them to `--output` after each."""
    args = _parser().parse_args()
    if args.list:
        print("kinds  ", *KINDS, "\nlayouts", *map(repr, LAYOUTS), "\noptions", *OPTIONS)
        return
    testing.PRELOADED.append("tests.rank_preload")
    disable_progress_bar()
    print(HEADER, flush=True)
    cells: list[dict[str, Any]] = []
    for kind in args.kinds:
        for cell in _cells_of(kind, args):
            cells.append(cell)
            print(_row(cell), flush=True)
            if args.output:
                _write(args.output, cells, args.iterations)
    sys.exit(any(cell["verdict"] in ("differs", "failed") for cell in cells))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, metavar="LAYOUT", help="default: all that fit")
    parser.add_argument("--options", nargs="*", choices=OPTIONS, default=[], metavar="OPTION", help="added everywhere")
    parser.add_argument("--iterations", type=int, default=1, help="of every run (default 1)")
    parser.add_argument("--output", type=Path, help="JSON file of all cells")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="of one run, in seconds (default 300)")
    parser.add_argument("--list", action="store_true", help="print the names of kinds, layouts and options, and stop")
    return parser


def _cells_of(kind: str, args: argparse.Namespace):
    """Yield a record of each layout; the run on one rank comes first, for it is what curves are compared with."""
    with tempfile.TemporaryDirectory(prefix="parity_") as folder:
        try:
            world = make_world(Path(folder, "world"), [kind])
            expected = expected_first_iteration(world, kind, documents="documents" in args.options)
        except Exception as error:
            yield {"kind": kind, "layout": "reference", "verdict": "failed", "line": f"{type(error).__name__}: {error}"}
            return
        single = None
        for layout in sorted(args.layouts or _fitting(kind), key=lambda name: name != "1x1"):
            cell = _run(kind, layout, world, Path(folder, layout), args)
            found = cell.pop("curves", None)
            single = found if layout == "1x1" else single
            yield cell | (_compared(found, expected, single) if found else {})


def _fitting(kind: str) -> list[str]:
    """All layouts; without those that divide experts where the model has none."""
    return [name for name, (_, layout_flags) in LAYOUTS.items() if has_experts(kind) or EP2[0] not in layout_flags]


def _run(kind: str, layout: str, world: Path, log_dir: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train; the curves, or the verdict and its line."""
    num_ranks, layout_flags = LAYOUTS[layout]
    more = [flag for option in args.options for flag in OPTIONS[option]]
    argv = [*flags(world, kind, iterations=args.iterations), *layout_flags, *more, "--tensorboard-dir", str(log_dir)]
    cell = {"kind": kind, "layout": " ".join([layout, *args.options]), "ranks": num_ranks}
    start = time.monotonic()
    try:
        output = f"{log_dir}.log"
        run_distributed(train_rank, num_ranks, argv, output, cpu_emulation=True, timeout_s=args.timeout_s)
        cell["curves"] = {key: values for key, values in curves(log_dir).items() if key in KEYS}
    except RankFailedError as error:
        line = str(error).strip().splitlines()[-1]
        refused = line.startswith("megatron_mixcpt.errors.")
        cell |= {
            "verdict": "refused" if refused else "failed",
            "line": line.split("Error: ", 1)[-1] if refused else line,
        }
    return cell | {"seconds": round(time.monotonic() - start, 1)}


def _compared(found: dict[str, list[float]], expected: dict[str, float], single: dict | None) -> dict[str, Any]:
    """The first iteration, how far it is from the reference, and the curves from those of one rank."""
    off = {key: abs(found[key][0] - expected[key]) / abs(expected[key]) for key in KEYS}
    apart = {}
    if single is not None and len(found["loss"]) > 1:
        apart = {key: _apart(found[key], single[key]) for key in KEYS}
    good = max(off.values()) <= FIRST_TOLERANCE and max(apart.values(), default=0.0) <= CURVES_TOLERANCE
    return {
        "verdict": "same" if good else "differs",
        "first": {key: found[key][0] for key in KEYS},
        "expected": {key: expected[key] for key in KEYS},
        "off": off,
        "curves apart": apart,
        "last loss": found["loss"][-1],
    }


def _apart(curve: list[float], single: list[float]) -> float:
    return max(abs(one - other) / abs(other) for one, other in zip(curve, single, strict=True))


def _row(cell: dict[str, Any]) -> str:
    start = f"{cell['kind']:18} {cell['layout']:34}"
    if "first" not in cell:
        return f"{start} {cell['verdict']}: {cell['line']}"
    figures = " ".join(f"{value:9.6f}" for value in cell["first"].values())
    apart = cell["curves apart"]
    columns = f"{apart['loss']:8.1e} {max(apart.values()):8.1e}" if apart else " " * 17
    verdict = "" if cell["verdict"] == "same" else "  DIFFERS"
    return f"{start} {figures} {max(cell['off'].values()):8.1e} {columns} {cell['seconds']:5.0f}{verdict}"


def _write(path: Path, cells: list[dict[str, Any]], iterations: int) -> None:
    versions = {name: version(name) for name in ("torch", "transformers", "megatron-core")}
    record = {"iterations": iterations, "versions": versions, "cells": cells}
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

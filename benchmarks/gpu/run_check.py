"""One check in a process of its own; accept.py starts it: python benchmarks/gpu/run_check.py NAME --save FILE ..."""

import argparse
import importlib
import shutil
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mixcpt import cpu_emulation  # noqa: E402

ON_CPU = cpu_emulation.install()

from benchmarks.gpu import device  # noqa: E402 - Megatron is imported after the emulation
from benchmarks.gpu.context import Context  # noqa: E402
from benchmarks.gpu.registry import CHECKS  # noqa: E402
from benchmarks.gpu.report import WRONG, Finding, NotRunError, Report  # noqa: E402


def main() -> None:
    """Run the check, and write what it found whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--save", type=Path, required=True, help="the file of the results")
    parser.add_argument("--work", type=Path, required=True, help="the folder that the checks share")
    parser.add_argument("--num-ranks", type=int, default=1)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--tiny-on-cpu", action="store_true")
    options = parser.parse_args()
    if ON_CPU and not options.tiny_on_cpu:
        sys.exit("error: there is no CUDA device")
    device.on_cpu = ON_CPU
    if options.peers:
        sys.path.append(str(options.peers))  # last: what is installed wins
    check = next(check for check in CHECKS if check.name == options.name)
    report = Report(judges_times=not ON_CPU)
    settings = {"tiny": options.tiny_on_cpu, "num_ranks": options.num_ranks}
    context = Context(report, options.work, check.name, smollm2=options.smollm2, peers=options.peers, **settings)
    # A checkpoint of an earlier call would be resumed.
    shutil.rmtree(options.work / check.name, ignore_errors=True)
    try:
        module, function = check.function.split(":")
        getattr(importlib.import_module(f"benchmarks.gpu.checks.{module}"), function)(context)
    except NotRunError as missing:
        report.not_run("the check", missing)
    except Exception as error:
        traceback.print_exc()
        report.add(Finding("the check", WRONG, note=f"{type(error).__name__}: {error}".splitlines()[0][:300]))
    report.save(options.save)


if __name__ == "__main__":
    main()

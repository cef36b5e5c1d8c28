"""The acceptance kit: whether Mix-CPT is right and fast on this machine's GPUs, in at most 25 minutes on one.

    python benchmarks/gpu/accept.py                          # parts a, b and c, each within 9 minutes
    python benchmarks/gpu/accept.py a                        # correctness alone
    torchrun --nproc-per-node N benchmarks/gpu/accept.py ranks   # several GPUs of one machine
    python benchmarks/gpu/accept.py --list                   # the checks, what they compare with, what is expected

It runs from a plain copy of the repository: nothing of it need be installed, PYTHONPATH finds what is missing. Each
check is a process with a limit of its own, and leaves OUTPUT/NAME.json and OUTPUT/NAME.log; OUTPUT/summary.json says
what ran where. The table comes last.

Exit code 0: nothing is wrong. 1: a result is wrong, or a check failed or was stopped at its limit. 2: no GPU. A time
beyond its expectation is "slower than expected", and what could not run "not run": both are counted, neither is wrong,
and neither counts as right.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.registry import LIMITS_S, Check, checks_of, listed  # noqa: E402
from benchmarks.gpu.report import NOT_RUN, SLOWER, WRONG, Finding, Report  # noqa: E402

RUN_CHECK = Path(__file__).resolve().with_name("run_check.py")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*LIMITS_S, []], metavar="{a,b,c,ranks}", help="default: a b c")
    parser.add_argument("--list", action="store_true", help="print the checks and exit")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these parts, only these checks")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--smollm2", type=Path, metavar="DIR", help="folder of SmolLM2-135M (see pack.sh)")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where pip installed other libraries with --target")
    parser.add_argument("--tiny-on-cpu", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limit-s", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.parts = options.parts or ["a", "b", "c"]
    chosen = {check.name for check in checks_of(options.parts, options.only)}
    if unknown := set(options.only or ()) - chosen:
        parser.error(f"--only {' '.join(sorted(unknown))}: no such check in {' '.join(options.parts)} (see --list)")
    return options


def main() -> None:
    """Run the checks, and leave with the code that says how it went."""
    options = parse_args()
    if options.list:
        print(listed())
        return
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun the first worker starts what each check needs; the others leave the GPUs to it
    from benchmarks.gpu.machine import describe_machine, num_gpus

    num_devices = int(os.environ.get("WORLD_SIZE", "1")) if options.tiny_on_cpu else num_gpus()
    if num_devices == 0:
        print("no GPU: torch finds no CUDA device here, so nothing was checked", file=sys.stderr)
        sys.exit(2)
    options.output.mkdir(parents=True, exist_ok=True)
    for kept in (options.output / "work").glob("*.json"):
        kept.unlink()  # figures of an earlier call; its models may stay
    options.num_ranks = min(num_devices, int(os.environ.get("WORLD_SIZE", num_devices)))
    summary = describe_machine() | {"command": shlex.join(sys.argv), "exercise on a CPU": options.tiny_on_cpu}
    results = run_parts(options)
    counts = {verdict: [name for name, result in results.items() if result["verdict"] == verdict] for verdict in
              ("right", WRONG, SLOWER, NOT_RUN)}  # fmt: skip
    save = options.output / "summary.json"
    save.write_text(json.dumps(summary | {"verdicts": counts, "checks": results}, indent=1), encoding="utf-8")
    print_table(results, summary)
    sys.exit(1 if counts[WRONG] else 0)


def run_parts(options: argparse.Namespace) -> dict[str, dict]:
    """The checks in turn; name -> what it found, its part, seconds and limit."""
    results = {}
    for part in dict.fromkeys(options.parts):
        # A CPU is given its time: the exercise is of the code.
        ends = float("inf") if options.tiny_on_cpu else time.monotonic() + LIMITS_S[part]
        for check in checks_of([part], options.only):
            left = ends - time.monotonic()
            limit = options.limit_s or min(check.limit_s, left) * (10 if options.tiny_on_cpu else 1)
            began = time.monotonic()
            print(f"== {part} {check.name}: {check.title}", flush=True)
            if left < 20:
                found = without_running(NOT_RUN, f"the {LIMITS_S[part]} s of part {part} are used up", options, check)
            else:
                found = run_check(check, limit, options)
            seconds = round(time.monotonic() - began, 1)
            results[check.name] = found | {"part": part, "seconds": seconds, "limit_s": round(limit)}
            print(f"   {found['verdict']}, {seconds} s\n", flush=True)
    return results


def run_check(check: Check, limit_s: float, options: argparse.Namespace) -> dict:
    """Run one check as a process group, which is stopped at the limit; its results, also where it left none."""
    save, log = (options.output / f"{check.name}.{suffix}" for suffix in ("json", "log"))
    save.unlink(missing_ok=True)
    command = [sys.executable, str(RUN_CHECK), check.name, "--save", str(save.resolve())]
    command += ["--work", str((options.output / "work").resolve()), "--num-ranks", str(options.num_ranks)]
    for name in ("smollm2", "peers"):
        if value := getattr(options, name):
            command += [f"--{name}", str(value.resolve())]
    environment = dict(os.environ)
    if options.tiny_on_cpu:
        command += ["--tiny-on-cpu"]
        environment["MIXCPT_DEVICE"] = "cpu"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            stop_group(process)
            return without_running(WRONG, f"not done after {limit_s:.0f} s, and stopped", options, check)
        finally:
            stop_group(process)  # what it may have left behind
    if not save.exists():
        return without_running(WRONG, f"ended with code {process.returncode}, see {log}", options, check)
    result = json.loads(save.read_text(encoding="utf-8"))
    for finding in result["findings"]:
        print(f"   {Finding(**finding).line()}", flush=True)
    return result


def stop_group(process: subprocess.Popen) -> None:
    """End a process and all it started: torchrun needs a moment to end its workers, which are in other groups."""
    for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        ends = time.monotonic() + patience_s
        while time.monotonic() < ends:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)


def without_running(verdict: str, reason: str, options: argparse.Namespace, check: Check) -> dict:
    """The results of a check that left none, written where its own would be."""
    report = Report()
    report.add(Finding("the check", verdict, note=reason))
    save = options.output / f"{check.name}.json"
    report.save(save)
    return json.loads(save.read_text(encoding="utf-8"))


def print_table(results: dict[str, dict], summary: dict) -> None:
    """One line for each check: its verdict, its seconds, and what explains the verdict."""
    print(f"{summary['card']} | {summary['versions']} | commit {summary['commit']} | {summary['date']}")
    if summary["exercise on a CPU"]:
        print("an exercise of the kit on a CPU at tiny sizes: no figure of it says anything of a GPU")
    for name, result in results.items():
        print(f"{result['part']:5} {name:22} {result['verdict']:20} {result['seconds']:6.1f} s  {headline(result)}")
    counts = ", ".join(f"{len(names)} {verdict}" for verdict, names in verdicts(results).items())
    print(f"{len(results)} checks: {counts}")


def verdicts(results: dict[str, dict]) -> dict[str, list[str]]:
    """Verdict -> names of the checks that have it, in the order in which they first appear."""
    found: dict[str, list[str]] = {}
    for name, result in results.items():
        found.setdefault(result["verdict"], []).append(name)
    return found


def headline(result: dict, length: int = 130) -> str:
    """The finding that explains the verdict: the first that has it; for what is right, the first with a figure."""
    findings = [Finding(**finding) for finding in result["findings"]]
    telling = [finding for finding in findings if finding.verdict == result["verdict"] and finding.verdict != "right"]
    figures = [finding for finding in findings if finding.value is not None]
    shown = next(iter([*telling, *figures, *findings]), None)
    return "" if shown is None else shown.line()[:length]


if __name__ == "__main__":
    main()

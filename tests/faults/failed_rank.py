"""Let one of two ranks fail, in every phase of every tool, and see that both end, with everything they started.

    python -m tests.faults.failed_rank                                       # all of it, in about ten minutes
    python -m tests.faults.failed_rank --tool train_dpo --fault optimizer    # one

Prints a row of a table for each: exit codes, seconds from the fault to the end of the last process, what the user sees.
Ranks are forked from a server that has imported the engine (``preloaded.py``) and then end as any process does. As
torchrun, the drill gives each rank a session of its own, and sends SIGTERM to the other when one has ended.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from megatron_mixcpt import testing
from tests.faults.launchers import free_port

ROOT = Path(__file__).parents[2]
# After which a rank is said to stay; torchrun would kill the other one after 30.
HANGS_S = 60.0
ALLOWED_S = 10.0
ASYNC, WORKERS = ["--async-save"], ["--num-workers", "2"]
OVERLAP = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]
TRAINERS = ("pretrain_mixcpt", "train_sft", "train_dpo")
# Faults -> flags beside those that every training has, by what the flags are for.
OPTIONS = {"workers": WORKERS, "workers, overlap, async save": [*WORKERS, *OVERLAP, *ASYNC]}
PHASES = ("start", "data", "forward", "backward", "optimizer", "evaluation", "save", "exit", "worker-killed")
HUNG, NEEDS_WRITER = "hung-peer", ("writer-killed", "rank-killed")


class End(NamedTuple):
    """How a drill ended."""

    codes: list[int | None]
    """Exit codes of the ranks; None: it had not ended."""
    came: bool
    """Whether the fault has come."""
    seconds: float
    """From the fault to the end of the last process; of the drill's start where the fault did not come."""
    left: list[str]
    """Command lines of the processes that outlived their rank."""
    output: str
    """What both ranks showed."""


def drill(tool: str, argv: list[str], fault: str, folder: Path, *, rank: int = 1, **environment: str) -> End:
    """Run a tool on two ranks, one of which has a fault of ``faulty.FAULTS``.

    Args:
        tool: of ``faulty.TOOLS``.
        argv: its command line.
        fault: of ``faulty.FAULTS``.
        folder: an empty one, for this drill.
        rank: which has the fault.
        environment: further variables.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(testing.PRELOADED)
    came, log = folder / "came", folder / "log"
    log.touch()
    world = environment | _world(folder) | {"FAULT": fault, "FAULT_RANK": str(rank), "FAULT_FILE": str(came)}
    ranks = [context.Process(target=_run_rank, args=(number, tool, argv, str(log), world)) for number in range(2)]
    began_s = time.time()
    for process in ranks:
        process.start()
    sessions = {process.pid for process in ranks}
    warned = False
    while time.time() < (came.stat().st_mtime if came.exists() else time.time() + 1.0) + HANGS_S:
        ended = [process for process in ranks if process.exitcode is not None]
        if len(ended) == 2 or time.time() > began_s + 4 * HANGS_S:
            break
        if any(process.exitcode for process in ended) and not warned:
            warned = True
            for process in ranks:
                _send(signal.SIGTERM, members({process.pid}))
        time.sleep(0.02)
    left = wait_for_the_rest(sessions)
    seconds = time.time() - (came.stat().st_mtime if came.exists() else began_s)
    codes = [process.exitcode for process in ranks]
    _send(signal.SIGKILL, members(sessions))
    for process in ranks:
        process.join()
    return End(codes, came.exists(), seconds, left, log.read_text(errors="replace"))


def _world(folder: Path) -> dict[str, str]:
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    return {
        **{"WORLD_SIZE": "2", **place, "TORCHELASTIC_RUN_ID": "drill"},
        **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "DRILL_FOLDER": str(folder)},
    }


def _run_rank(rank: int, tool: str, argv: list[str], log: str, world: dict[str, str]) -> None:
    """Body of a rank's process."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # the default of a process that is started as users do
    error_file = Path(world["DRILL_FOLDER"], "attempt_0", str(rank), "error.json")
    error_file.parent.mkdir(parents=True)
    os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank), TORCHELASTIC_ERROR_FILE=str(error_file))
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from tests.faults import faulty  # with the variables set: it is broken as it is imported

    sys.modules["__main__"] = faulty  # what a process imports that this one starts
    sys.argv = [f"{tool}.py", *argv]
    faulty.run(tool, argv)


def members(sessions: set[int | None]) -> dict[int, str]:
    """Process ids and command lines of what is in these sessions, zombies apart."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                state, _, _, session, *_ = (path / "stat").read_text().rpartition(")")[2].split()
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it has just ended
                continue
            if int(session) in sessions and state not in "ZX":
                found[int(path.name)] = command
    return found


def marked(variable: str) -> list[str]:
    """Command lines of the processes that were started with ``NAME=VALUE`` in their environment."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if variable.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path / "cmdline").read_text(errors="replace"))
            except OSError:  # it has just ended, or is another user's
                continue
    return found


def wait_for_the_rest(sessions: set[int | None], limit_s: float = 8.0) -> list[str]:
    """Give what has outlived the ranks some seconds to end; the command lines of what does not."""
    deadline = time.monotonic() + limit_s
    while (left := members(sessions)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return list(left.values())


def _send(number: signal.Signals, processes: dict[int, str]) -> None:
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def command(world: Path, tool: str, save: Path) -> list[str]:
    """A short run of the tool in ``world`` (``interruptions.make_folder``)."""
    from tests.distributed.tiny_run import flags

    if tool == "score_alignment":
        given = ["--hf-model", str(world / "chat"), "--sft", str(world / "sft.jsonl"), "--chat-template", "zephyr"]
        given += ["--dtype", "float32", "--batch-tokens", "64"]  # each rank gets some
        return [*given, "--seq-length", "256", "--output", str(save.parent / "scores.jsonl")]
    if tool == "evaluate":
        given = ["--hf-model", str(world / "chat"), "--perplexity", f"sft={world / 'texts.jsonl'}"]
        return [*given, "--dtype", "float32", "--batch-tokens", "16", "--output", str(save)]
    every = ["--save", str(save), "--save-interval", "2"]
    if tool == "pretrain_mixcpt":
        return [*flags(world, iterations=6), "--split", "60,40", "--eval-interval", "2", "--eval-iters", "1", *every]
    kind = tool.removeprefix("train_")
    given = [*("--hf-model", str(world / "chat"), f"--{kind}", str(world / f"{kind}.jsonl"), "--chat-template")]
    given += ["zephyr", "--seq-length", "256", "--global-batch-size", "2", "--epochs", "2", "--lr", "1e-3"]
    return [*given, "--held-out", "0.4", "--eval-interval", "2", "--log-interval", "1", *every]


def cases() -> list[tuple[str, str, str, list[str]]]:
    """Tool, fault, what is on, and the flags for that: all that the drill does."""
    found = []
    for tool in TRAINERS:
        for name, options in OPTIONS.items():
            faults = [*PHASES, HUNG, *(NEEDS_WRITER if "async" in name else ())]
            found += [(tool, fault, name, options) for fault in faults]
    for tool in ("score_alignment", "evaluate"):
        found += [(tool, fault, "", []) for fault in ("first-forward", "peer-hangs")]
    return found


def main() -> None:
    """Read the command line and run the drills; exits with 1 where one did not end as it should."""
    from tests.faults.interruptions import make_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool")
    parser.add_argument("--fault")
    parser.add_argument("--keep", type=Path, help="folder for the runs")
    options = parser.parse_args()
    testing.PRELOADED.append("tests.faults.preloaded")
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        make_folder(root)
        (root / "world/texts.jsonl").write_text('{"text": "def add(x, y): return x + y"}\n' * 8)
        print("| tool | on | fault | exit codes | seconds | left | last line |\n|---|---|---|---|---|---|---|")
        for number, (tool, fault, on, flags) in enumerate(cases()):
            if options.tool in (None, tool) and options.fault in (None, fault):
                folder = root / f"drill-{number}"
                folder.mkdir()
                end = drill(tool, [*command(root / "world", tool, folder / "save"), *flags], fault, folder)
                bad += not as_it_should_be(end)
                shown = (end.output.strip().splitlines() or [""])[-1][:120]
                row = (
                    tool,
                    on,
                    fault if end.came else f"{fault} (did not come)",
                    end.codes,
                    f"{end.seconds:.1f}",
                    len(end.left),
                    shown,
                )
                print("|", " | ".join(map(str, row)), "|", flush=True)
    sys.exit(1 if bad else 0)


def as_it_should_be(end: End) -> bool:
    """The run has failed and nothing is left; a rank that was killed has its signal for a code."""
    return end.came and any(end.codes) and None not in end.codes and not end.left and end.seconds < ALLOWED_S


if __name__ == "__main__":
    main()

"""Take a host away from a running job and give it back, and see that the job ends as if nothing had been.

    python -m tests.multihost.drill --hosts 2 --layout TP2_PP2 --fault kill
    python -m tests.multihost.drill --hosts 4 --layout PP2_DP2 --fault cable --away 20

kill: every process of the last host dies at once, and its command is started again ``--away`` seconds later; cable: its
network is cut for so long. Where all commands end with an error they are started again once, as a supervisor would.
Prints a row of a table: what was tried, how often training began, how far its losses are from those of the same ranks
on one host, and how many seconds the job took.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.distributed.tiny_run import flags, make_world, train
from tests.multihost.hosts import Hosts, why_not
from tests.multihost.job import Job

# TP inside a host, PP and DP (whatever is left) across them; name -> ranks on each host, and flags.
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "PP2": (1, ["--pipeline-model-parallel-size", "2"]),
    "DP2": (1, []),
    "TP2_PP2": (2, ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]),
    "TP2_DP2": (2, ["--tensor-model-parallel-size", "2"]),
    "PP2_DP2": (1, ["--pipeline-model-parallel-size", "2"]),
    "PP4": (1, ["--pipeline-model-parallel-size", "4"]),
}


def disturb(job: Job, fault: str, away_s: float) -> None:
    """Take the last host away once training is under way, and give it back."""
    last = len(job.hosts.addresses) - 1
    job.wait_for_iteration(3, timeout_s=240)
    if fault == "kill":
        job.hosts.kill(last)
        time.sleep(away_s)
        job.start(last)
    elif fault == "cable":
        job.hosts.cut_off(last)
        time.sleep(away_s)
        job.hosts.plug_in(last)


def main() -> None:
    """Run one drill and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2, choices=(2, 4))
    parser.add_argument("--layout", choices=LAYOUTS, default="PP2")
    parser.add_argument("--fault", choices=("none", "kill", "cable"), default="kill")
    parser.add_argument("--away", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args()
    if reason := why_not():
        raise SystemExit(f"error: {reason}")
    ranks, layout = LAYOUTS[options.layout]
    with tempfile.TemporaryDirectory() as temporary, Hosts(options.hosts) as hosts:
        world, folder = make_world(Path(temporary, "world")), Path(temporary, "job")
        undisturbed = [*flags(world, iterations=options.iterations), *layout]
        expected = train(options.hosts * ranks, undisturbed, Path(temporary, "log"))["loss"]
        folder.mkdir()
        begin = time.monotonic()
        job = Job(hosts, world, folder, layout, ranks_per_host=ranks, iterations=options.iterations)
        job.start_all()
        disturb(job, options.fault, options.away)
        if again := all(job.wait(timeout_s=400)):
            job.start_all()
        codes, seconds = job.wait(timeout_s=400), time.monotonic() - begin
        if any(codes):
            raise SystemExit(f"error: exit codes {codes}: {job.ends_of_logs()}")
        losses = job.losses()
        worst = max(abs(losses[step + 1] / loss - 1) for step, loss in enumerate(expected))
        lives = job.log(0).read_text(errors="replace").count("before the start of training step")
    print(
        f"| {options.hosts} x {ranks} | {options.layout} | {options.fault}, {options.away:g} s | {lives} | "
        f"{'all started again, ' if again else ''}ended well | {worst:.1e} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()

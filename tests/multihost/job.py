"""The main job on several hosts: one torchrun to a host; they meet at the first host's address and restart together."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.tiny_run import flags
from tests.multihost.hosts import INTERFACE, Hosts

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": INTERFACE,
    # The agents that are left would not tell a new one where they meet (``_bootstrap_store_info`` in
    # torch/distributed/elastic/rendezvous/dynamic_rendezvous.py is kept from their first meeting).
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
# How soon the agents notice a host that has gone (torch/distributed/elastic/rendezvous/dynamic_rendezvous.py); and who
# keeps the rendezvous, which real hosts find out from their names.
RENDEZVOUS = "keep_alive_interval=2,keep_alive_max_attempt=3,timeout=120,is_host={}"


class Job:
    """A training run of a tiny model over all hosts, which saves every other iteration and resumes from there.

    Args:
        hosts: where it runs.
        world: folder of :func:`tests.distributed.tiny_run.make_world`.
        folder: for checkpoints and logs.
        layout: parallel sizes as flags.
        ranks_per_host: processes of each torchrun.
        iterations: length of the run.
    """

    def __init__(
        self, hosts: Hosts, world: Path, folder: Path, layout: Sequence[str], *, ranks_per_host: int, iterations: int
    ) -> None:
        self.hosts, self.folder, self._ranks = hosts, folder, ranks_per_host
        self.argv = [*flags(world, iterations=iterations), *layout]
        save = str(folder / "checkpoints")
        self._save = ["--save", save, "--load", save, "--save-interval", "2", "--tensorboard-dir", str(folder / "log")]
        self.agents: dict[int, subprocess.Popen] = {}

    def start(self, host: int) -> None:
        """Run the command of one host: the first time, and the very same after a failure."""
        address = self.hosts.addresses
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(address))]
        command += ["--nproc-per-node", str(self._ranks), "--max-restarts", "3", "--rdzv-id", "mixcpt"]
        command += [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            f"{address[0]}:29400",
            "--rdzv-conf",
            RENDEZVOUS.format(int(host == 0)),
        ]
        command += ["--local-addr", address[host], str(ROOT / "tools/pretrain_mixcpt.py"), *self.argv, *self._save]
        self.agents[host] = self.hosts.start(host, command, self.log(host), ENVIRONMENT)

    def start_all(self) -> None:
        """Run the command of every host."""
        for host in range(len(self.hosts.addresses)):
            self.start(host)

    def log(self, host: int) -> Path:
        """What the processes of a host print."""
        return self.folder / f"host{host}.txt"

    def iteration(self) -> int:
        """The last iteration that any host has reported, of any life of the run."""
        texts = (path.read_text(errors="replace") for path in self.folder.glob("host*.txt"))
        return max((int(number) for text in texts for number in re.findall(r"iteration +(\d+)/", text)), default=0)

    def wait_for_iteration(self, number: int, timeout_s: float) -> None:
        """Return once an iteration has been reported; raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while self.iteration() < number:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"iteration {self.iteration()} of {number} after {timeout_s} s: {self.ends_of_logs()}"
                )
            time.sleep(0.1)

    def wait(self, timeout_s: float) -> list[int]:
        """Exit codes of the hosts' torchruns, once all have ended."""
        deadline = time.monotonic() + timeout_s
        return [agent.wait(max(0.1, deadline - time.monotonic())) for _, agent in sorted(self.agents.items())]

    def losses(self) -> dict[int, float]:
        """The loss of each iteration, the last life's where there were several."""
        events = EventAccumulator(str(self.folder / "log"), size_guidance={"scalars": 0})
        events.Reload()
        return {event.step: event.value for event in events.Scalars("loss")}

    def ends_of_logs(self) -> str:
        """The last lines of each host, for a failure's report."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.txt")
        )

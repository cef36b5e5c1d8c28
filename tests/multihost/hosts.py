"""Several hosts on one machine: network namespaces with separate addresses, connected to a bridge.

Each host sees its loopback and one interface, ``eth0``; the bridge is in a separate namespace, so that nothing of the
machine's own network is touched. Needs root and the ``ip`` command. Hosts share the machine's files, as a cluster's do.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

INTERFACE = "eth0"


def why_not() -> str | None:
    """Why hosts cannot be made here; None: they can."""
    if shutil.which("ip") is None:
        return "there is no ip command (Debian: iproute2)"
    name = f"mixcpt-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here ({made.stderr.strip()})"
    cabled = subprocess.run(
        ["ip", "-n", name, "link", "add", "port0", "type", "veth", "peer", "name", "port1"],
        capture_output=True,
        text=True,
        check=False,
    )
    _run("ip", "netns", "del", name)
    return f"virtual cables are not permitted here ({cabled.stderr.strip()})" if cabled.returncode else None


class Hosts:
    """Make ``num_hosts`` hosts for a ``with`` block; at its end every process on them is killed and they are gone."""

    def __init__(self, num_hosts: int) -> None:
        self._prefix = f"mixcpt-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self.addresses = [f"10.77.0.{10 + host}" for host in range(num_hosts)]

    def __enter__(self) -> "Hosts":
        _sweep()
        _run("ip", "netns", "add", self._switch)
        self._in_switch("link", "add", "bridge", "type", "bridge")
        self._in_switch("link", "set", "bridge", "up")
        for host, address in enumerate(self.addresses):
            _run("ip", "netns", "add", self.name(host))
            cable = ("link", "add", f"port{host}", "type", "veth", "peer", INTERFACE, "netns", self.name(host))
            self._in_switch(*cable)
            self._in_switch("link", "set", f"port{host}", "master", "bridge", "up")
            for arguments in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"{address}/24", "dev", INTERFACE),
                ("link", "set", INTERFACE, "up"),
            ):
                _run("ip", "-n", self.name(host), *arguments)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in range(len(self.addresses)):
            self.kill(host)
            _run("ip", "netns", "del", self.name(host))
        _run("ip", "netns", "del", self._switch)

    def name(self, host: int) -> str:
        """A host's namespace."""
        return f"{self._prefix}-host{host}"

    def start(self, host: int, command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
        """Start a command on a host; its output is added to ``log``."""
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name(host), *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def kill(self, host: int) -> int:
        """End every process on a host at once, as a power failure does; returns how many there were."""
        num_killed = 0
        while pids := _run("ip", "netns", "pids", self.name(host)).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    num_killed += 1
            time.sleep(0.05)
        return num_killed

    def cut_off(self, host: int) -> None:
        """Pull a host's cable."""
        self._in_switch("link", "set", f"port{host}", "down")

    def plug_in(self, host: int) -> None:
        """Put it back."""
        self._in_switch("link", "set", f"port{host}", "up")

    def _in_switch(self, *arguments: str) -> None:
        _run("ip", "-n", self._switch, *arguments)


def _sweep() -> None:
    """Remove the hosts of runs that were killed before they could."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        owner = re.fullmatch(r"mixcpt-(\d+)-.*", name)
        if owner and not Path("/proc", owner[1]).exists():
            for pid in _run("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "del", name)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

"""One run at a time in a folder, also on shared file systems, some of which ignore locks.

A claim is a hidden file ``.claim-N`` that says which process holds the folder. It is created exclusively, which is
atomic on network file systems too, and refreshed: the time of its last change, by the file server's clock, is its
holder's last sign of life. A claim is stale ``STALE_AFTER_S`` after that, and at once where its process was on this
machine and is no longer there. Whoever takes over a stale claim creates the file with the next number, so that of
several only one succeeds; the highest number holds.
"""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

PREFIX = ".claim-"
REFRESH_S = 20.0
STALE_AFTER_S = 300.0
SILENT_AFTER_S = 2 * REFRESH_S
"""Without a sign of life for so long, a holder has missed a refresh and may be gone."""


class ClaimLostError(Exception):
    """Another run has taken over the claim; ``str()`` says which, as far as that is known."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder, or wants to."""

    host: str
    pid: int
    process: str
    """Boot of the machine, its space of process ids, and when the process started: a number may be given again."""
    since: float
    """Seconds since the epoch, by its own clock."""
    job: str | None
    """What the job is called by whatever starts it again; None where nothing does."""
    attempt: tuple[int, int]
    """How often the scheduler and torchrun have started the job again."""

    @classmethod
    def this_process(cls, environment: Mapping[str, str] = os.environ) -> "Holder":
        """The process that calls, in a job of Slurm or a torchrun."""
        slurm, torchrun = environment.get("SLURM_JOB_ID"), environment.get("TORCHELASTIC_RUN_ID", "none")
        job = f"Slurm job {slurm}" if slurm else f"torchrun {torchrun}" if torchrun != "none" else None
        counts = (environment.get(f"{name}_RESTART_COUNT", "0") for name in ("SLURM", "TORCHELASTIC"))
        scheduler, launcher = (int(count) if count.isdecimal() else 0 for count in counts)
        pid = os.getpid()
        return cls(socket.gethostname(), pid, identity_of(pid) or "", time.time(), job, (scheduler, launcher))

    def follows(self, other: "Holder") -> bool:
        """Whether ``other`` is an earlier attempt of this job."""
        return self.job is not None and self.job == other.job and self.attempt > tuple(other.attempt)

    def is_gone(self) -> bool:
        """Whether the process was on this machine and has ended; False where that cannot be seen from here."""
        here = _machine()
        if here is None or not self.process.startswith(f"{here} "):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's: /proc may hide it
            return False
        return identity_of(self.pid) != self.process


@dataclass(frozen=True)
class Found:
    """A claim that somebody has made."""

    path: Path
    number: int
    holder: Holder | None
    """None where the file cannot be read, or not yet: its holder may be writing it."""
    silent_s: float
    """Seconds since its last sign of life."""

    @property
    def is_stale(self) -> bool:
        """Whether it may be taken over."""
        return self.silent_s > STALE_AFTER_S or (self.holder is not None and self.holder.is_gone())


class Claim:
    """A claim of this process."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        self._content = content

    def refresh(self) -> None:
        """Give a sign of life.

        Raises:
            ClaimLostError: another process has taken the folder over.
        """
        try:
            with open(self._path, "rb") as file:  # by its name: a network file system then asks its server
                is_mine = file.read() == self._content
                if is_mine:
                    os.utime(file.fileno())
        except FileNotFoundError:
            is_mine = False
        except OSError:
            return  # a file system that does not answer is no other run
        newest = found_in(self._path.parent)
        if not is_mine or (newest is not None and newest.number > _number(self._path)):
            raise ClaimLostError(described(newest.holder) if newest and newest.holder else "which has ended")

    def release(self) -> None:
        """Give the folder back, unless another process has taken it over."""
        try:
            if self._path.read_bytes() == self._content:
                self._path.unlink()
        except OSError:
            pass  # it will be stale


def take(folder: Path, holder: Holder) -> Claim | Found:
    """Claim an existing folder for ``holder``, this process; returns the claim that stands against it, if one does.

    Raises OSError where the folder cannot be written.
    """
    content = json.dumps(asdict(holder)).encode()
    while True:
        found = found_in(folder, _time_of_server(folder))
        if found is not None and not found.is_stale:
            return found
        path = folder / f"{PREFIX}{found.number + 1 if found else 1}"
        try:
            _create(path, content)
        except FileExistsError:
            continue  # another was faster
        others = {_number(other): other for other in folder.glob(f"{PREFIX}*")}
        if max(others, default=0) > _number(path):
            path.unlink()  # made from an old list
            continue
        for number, other in others.items():
            if number < _number(path):
                other.unlink(missing_ok=True)
        return Claim(path, content)


def found_in(folder: Path, now: float | None = None) -> Found | None:
    """The claim that holds ``folder``, stale or not; None where there is none.

    Args:
        folder: of claims; it need not exist.
        now: seconds since the epoch, by the clock that gives files their times; None: by that of this machine.
    """
    for path in sorted(folder.glob(f"{PREFIX}*"), key=_number, reverse=True):
        try:
            with open(path, "rb") as file:
                content, changed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            continue
        return Found(path, _number(path), _holder(content), max((now or time.time()) - changed, 0.0))
    return None


def described(holder: Holder) -> str:
    """A process for people: ``process 412 on node7 (Slurm job 31), started 2 h 5 min ago``."""
    job = f" ({holder.job})" if holder.job else ""
    return f"process {holder.pid} on {holder.host}{job}, started {age(time.time() - holder.since)} ago"


def age(seconds: float) -> str:
    """A length of time for people, in its two largest units."""
    whole = max(int(seconds), 0)
    units = (("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((place for place, (_, count) in enumerate(units) if count), len(units) - 1)
    shown = [f"{count} {unit}" for unit, count in units[first : first + 2] if count]
    return " ".join(shown) or "0 s"


def identity_of(pid: int) -> str | None:
    """Tells a process of this machine from any other, before and after it; None where it has ended or is not shown."""
    machine = _machine()
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        num_threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return None
    if machine is None or (state in "ZX" and num_threads < 2):  # a killed process whose parent has not looked yet
        return None
    started = rest[18]  # field 22 of proc(5): clock ticks since the machine started
    return f"{machine} {started}"


def _machine() -> str | None:
    """This boot of this machine, and its space of process ids; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _holder(content: bytes) -> Holder | None:
    try:
        fields = json.loads(content)
        return Holder(**fields | {"attempt": tuple(fields["attempt"])})
    except (ValueError, TypeError, KeyError):
        return None


def _number(path: Path) -> int:
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else 0


def _create(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _time_of_server(folder: Path) -> float:
    """What time a file gets that is made now. Raises OSError where none can be made."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime

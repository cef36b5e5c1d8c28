"""Whether a program that a model wrote runs through, its tests with it: HumanEval and MBPP score by this.

Each program runs in a process of its own, in a new folder, with limits on time, memory and the size of files, without
network, without this process's environment, and with nothing of the machine to write to (``code_jail.py``).
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation import code_jail

GRACE_SECONDS = 20.0
"""What the jail may take beside the program; it keeps the program's time itself."""


@dataclass(frozen=True)
class Limits:
    """Of one program."""

    seconds: int = 10
    """On the clock, and of processor time."""
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    """Of each file that it writes."""


def passes(program: str, limits: Limits | None = None) -> bool:
    """Whether ``program`` comes to its end without an exception. Raises ConfigError where it cannot be isolated."""
    chosen = limits or Limits()
    numbers = map(str, (chosen.seconds, chosen.memory_bytes, chosen.file_bytes))
    with tempfile.TemporaryDirectory(prefix="generated-code-") as folder:
        jail = subprocess.Popen(
            [sys.executable, "-I", code_jail.__file__, *numbers],
            cwd=folder,
            env={"PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, message = jail.communicate(program.encode(errors="replace"), chosen.seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(jail.pid, signal.SIGKILL)
            jail.wait()
    if jail.returncode == code_jail.NO_ISOLATION:
        raise ConfigError(
            f"--run-generated-code: this machine gives a process no namespaces of its own "
            f"({message.decode(errors='replace').strip()}); allow unprivileged user namespaces, or leave such tasks out"
        )
    return jail.returncode == 0


def check_isolation() -> None:
    """Raise ConfigError, before hours of generation, where programs cannot be run."""
    if not passes("assert True"):
        raise ConfigError(f"--run-generated-code: {sys.executable} -I does not run here; mend the installation")

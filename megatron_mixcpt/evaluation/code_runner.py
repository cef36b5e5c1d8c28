"""Whether a program that a model wrote runs to its end, with its tests: the score of HumanEval and MBPP.

Each program runs in a separate process, in a new folder, with limits on time, memory and the size of files, without
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
"""Time that the jail may take in addition to the program, whose time it limits."""


@dataclass(frozen=True)
class Limits:
    """Limits of one program."""

    seconds: int = 10
    """Wall-clock time, and processor time."""
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    """Maximum size of each file that the program writes."""


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
            f"--run-generated-code: this machine does not let a process create namespaces "
            f"({message.decode(errors='replace').strip()}); allow unprivileged user namespaces, or remove these tasks"
        )
    return jail.returncode == 0


def check_isolation() -> None:
    """Raise ConfigError, before hours of generation, where programs cannot be run."""
    if not passes("assert True"):
        raise ConfigError(f"--run-generated-code: {sys.executable} -I does not run here; repair the installation")

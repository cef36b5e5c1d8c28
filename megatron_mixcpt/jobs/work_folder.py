"""The folder that a run works in: for one run at a time, and resumed only by the same run."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_mixcpt import __version__
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.whole_outputs import write_whole

PLAN_NAME = "plan.json"
"""In a work folder: what the run is that works there."""


@contextmanager
def lock(output: Path) -> Iterator[None]:
    """Reserve the folder for this run and its workers. The lock ends with them, however they end."""
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(f"--output {output}: another run is writing there; wait for it, or choose another") from error
    finally:
        os.close(descriptor)


def start_or_resume(work: Path, settings: dict[str, Any], inputs: list[list[Any]], output: Path) -> None:
    """Make the work folder of the run that writes ``output``, or check that an existing one is of the same run.

    ``settings`` are the run's settings by flag; ``inputs`` are the stamps of its input files.
    """
    plan_path = work / PLAN_NAME
    plan = {"tool version": __version__, "settings": settings, "sources": inputs}
    if plan_path.exists():
        refuse_other(json.loads(plan_path.read_text(encoding="utf-8")), plan, output)
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write_whole(plan_path, json.dumps(plan))


def refuse_other(before: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    """Raise ConfigError, naming the first difference, unless both describe the same run."""
    names = [*before["settings"], *(name for name in now["settings"] if name not in before["settings"])]
    for name in names:
        then, here = before["settings"].get(name, "its default"), now["settings"].get(name, "its default")
        if then != here:
            raise ConfigError(
                f"--output {output} was made with {name} {_shown(then)}, now it is {_shown(here)}; "
                "choose another --output, or delete it"
            )
    if before["sources"] != now["sources"]:
        changed = next((new for old, new in zip(before["sources"], now["sources"], strict=False) if old != new), None)
        what = f"{changed[1]} has changed since" if changed else "the number of input files has changed since"
        raise ConfigError(f"--output {output} was made from other input: {what}; choose another --output, or delete it")
    if before["tool version"] != now["tool version"]:
        raise ConfigError(
            f"--output {output} holds the work of version {before['tool version']} of this tool, this is "
            f"{now['tool version']}; choose another --output, or delete it"
        )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

"""What trials found, kept in a file so that a list may be run in parts, and as a table."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tests.mutation.fault_list import ROOT, Fault
from tests.mutation.trial import KILLED, SURVIVED, Outcome

Found = dict[str, dict]
"""The digest of a fault -> its outcome, when and at which commit."""

HEAD = """# Planted faults

A fault is planted in a copy of the tree, and the tests meant for it must fail. The list is `tests/mutation/faults/`;
[CONTRIBUTING.md](../../CONTRIBUTING.md#planted-faults) says how to run it. This page is written by `python -m
tests.mutation.run --table docs/evidence/mutations.md`.

The list is written by hand. mutmut 3.8 and cosmic-ray 8.7 were read and left: they make every mutant that their
operators find in a file. mutmut chooses tests by the calls that it sees in the process of pytest, while the trainers
run in ranks, which are other processes, and it wraps each function, which the losses' compiler would trace through.
cosmic-ray has one test command for all mutants of a session, and a trial here takes seconds to a minute.
"""


def read_results(path: Path) -> Found:
    """Of earlier runs; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep_result(path: Path, found: Found, fault: Fault, outcome: Outcome) -> None:
    """Add an outcome to ``found`` and to the file."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found[fault.digest] = outcome._asdict() | {"date": str(date.today()), "commit": commit.stdout.strip()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(faults: Sequence[Fault], found: Mapping[str, dict]) -> str:
    """All faults as Markdown; those whose outcome is not known say so."""
    known = {fault: found[fault.digest] for fault in faults if fault.digest in found}
    counts = [sum(outcome["status"] == status for outcome in known.values()) for status in (KILLED, SURVIVED)]
    others = len(faults) - sum(counts)
    dates = sorted({outcome["date"] for outcome in known.values()})
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "transformers", "pytest"))
    lines = [
        HEAD,
        f"{len(faults)} faults: {counts[0]} killed, {counts[1]} survived, {others} not run. Run "
        f"{' to '.join(dict.fromkeys([dates[0], dates[-1]])) if dates else 'never'} with Python "
        f"{platform.python_version()}, {packages}. Seconds are those of one trial on a machine that did other work.\n",
        "| number | room | fault | outcome | killed by | seconds |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(fault, known.get(fault)) for fault in faults)]) + "\n"


def _row(fault: Fault, outcome: Mapping | None) -> str:
    start = f"| {fault.number} | `{fault.room}` | {fault.what} |"
    if outcome is None:
        return f"{start} not run | | |"
    by = f"`{outcome['by']}`" if outcome["by"] else fault.survives
    return f"{start} {outcome['status']} | {by} | {outcome['seconds']} |"

"""What a run of the suite on another engine showed, as Markdown.

    python -m tests.engine_upgrade.report build/engine-0.20.0

Reads what ``tests/run_engine.sh`` left in the folder (``tests.xml`` of pytest; ``entries-pinned.json`` and
``entries.json`` of ``entries.py``), writes ``report.md`` beside them and prints it.
"""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from megatron_mixcpt.training.engine.patches import REGISTER


def report(folder: Path) -> str:
    """The whole report. Exits with one line where the tests did not get as far as their results."""
    if not (folder / "tests.xml").exists():
        sys.exit(f"error: {folder / 'tests.xml'} is missing: pytest ended before it wrote its results (see above)")
    suite = ElementTree.parse(folder / "tests.xml").getroot().find("testsuite")
    assert suite is not None
    before, now = (json.loads((folder / name).read_text()) for name in ("entries-pinned.json", "entries.json"))
    changed = changed_entries(before["entries"], now["entries"])
    same = len(before["entries"]) - len(changed)
    return "\n".join(
        [f"# The suite on megatron-core {now['version']} (pinned: {before['version']})", ""]
        + [f"{counts(suite)}, in {float(suite.attrib['time']):.0f} s.", "", *failures(suite)]
        + [f"Of {len(before['entries'])} names in the register of engine changes, {same} are the same text.", ""]
        + changed
    )


def counts(suite: ElementTree.Element) -> str:
    """Passed, failed and skipped tests."""
    total, failed, errors, skipped = (int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped"))
    return f"{total - failed - errors - skipped} passed, {failed + errors} failed, {skipped} skipped"


def failures(suite: ElementTree.Element) -> list[str]:
    """A line for each failed test, with the first line of its error, and an empty one."""
    lines = []
    for case in suite.iter("testcase"):
        for error in [*case.findall("failure"), *case.findall("error")]:
            message = (error.attrib.get("message") or "").strip().splitlines() or [""]
            lines.append(f"- `{case.attrib['classname']}::{case.attrib['name']}`: {message[0][:200]}")
    return [*lines, ""] if lines else []


def changed_entries(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each name of the register whose signature or text differs, with our modules that rely on it."""
    lines = []
    for name, old in before.items():
        new = now[name]
        if old["signature"] != new["signature"]:
            what = f"signature `{old['signature'].strip()}` is now `{new['signature'].strip()}`"
        elif old["source"] != new["source"]:
            what = "same signature, another text"
        else:
            continue
        owners = ", ".join(dict.fromkeys(entry.owner for entry in REGISTER if entry.name == name))
        lines.append(f"- `{name}`: {what}; look at {owners}")
    return lines


def main() -> None:
    """Write the report and print it."""
    folder = Path(sys.argv[1])
    text = report(folder)
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

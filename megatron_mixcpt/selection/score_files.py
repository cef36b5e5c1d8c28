"""Parts of a scores file, written while a run goes on and joined at its end, in the order of the input.

A run that writes ``scores.jsonl`` keeps its work in ``.scores.jsonl.work``::

    plan.json             the settings and inputs; a run with others is refused
    part-000012.rejects   a JSON line per row of the part without a score, with the reason
    part-000012.scores    a JSON line per sample with a score; written last: a part that has this file is finished

The joined files are ``scores.jsonl`` and ``scores.rejects.jsonl``.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.whole_outputs import open_whole, write_whole


class ScoreFiles:
    """The files of one run; one process writes."""

    def __init__(self, output: Path):
        self.output = output
        self.rejects = output.with_name(f"{output.name.removesuffix('.jsonl')}.rejects.jsonl")
        self.work = output.with_name(f".{output.name}.work")

    def check_new(self) -> None:
        """Raise ConfigError where the output is there already, or its folder is not."""
        if self.output.exists():
            raise ConfigError(f"--output {self.output} already exists; choose another, or remove it")
        if not self.output.absolute().parent.is_dir():
            raise ConfigError(
                f"--output {self.output}: the folder {self.output.parent} does not exist; create it first"
            )

    def planned(self, name: str) -> Any:
        """A setting of the run that left its work here; None where there is none."""
        try:
            return orjson.loads((self.work / "plan.json").read_bytes())["settings"].get(name)
        except (OSError, ValueError, KeyError):
            return None

    def finished(self) -> set[int]:
        """Numbers of the parts that are finished."""
        return {int(path.stem.removeprefix("part-")) for path in self.work.glob("part-*.scores")}

    def write_part(self, number: int, scores: Iterable[dict[str, Any]], rejects: Iterable[dict[str, Any]]) -> None:
        """Write the two files of a part. Raises OSError."""
        for suffix, lines in ((".rejects", rejects), (".scores", scores)):
            write_whole(self._part(number, suffix), b"".join(orjson.dumps(line) + b"\n" for line in lines))

    def join(self, num_parts: int) -> None:
        """Join the parts to the output and its rejects, the output last, and remove the parts.

        Raises:
            DataError: no sample has a score; the message names the first reason.
            OSError: a file cannot be written.
        """
        if not any(path.stat().st_size for path in self.work.glob("part-*.scores")):
            raise DataError(f"--output {self.output}: {self._first_reject()}")
        for target, suffix in ((self.rejects, ".rejects"), (self.output, ".scores")):
            with open_whole(target) as file:
                for number in range(num_parts):
                    file.write(self._part(number, suffix).read_bytes())
        shutil.rmtree(self.work)

    def _part(self, number: int, suffix: str) -> Path:
        return self.work / f"part-{number:06d}{suffix}"

    def _first_reject(self) -> str:
        lines = (line for path in sorted(self.work.glob("part-*.rejects")) for line in path.read_bytes().splitlines())
        first = orjson.loads(next(lines, b"{}"))
        if not first:
            return "the input holds no samples; give other files"
        return f"no sample can be scored; the first is {first['source']}:{first['line']}: {first['detail']}"


def count_lines(path: Path, *names: str) -> Counter[tuple]:
    """The number of lines of a JSONL file for each combination of values of the fields ``names``."""
    with open(path, "rb") as file:
        return Counter(tuple(map(orjson.loads(line).get, names)) for line in file)


def count_notes(path: Path) -> Counter[tuple[str, str]]:
    """The number of lines of a scores file for each kind and note."""
    with open(path, "rb") as file:
        lines = map(orjson.loads, file)
        return Counter((line["kind"], note) for line in lines for note in line.get("notes", ()))

"""Parts of a scores file, put aside while a run goes on and joined at its end, in the order of the input.

A run that writes ``scores.jsonl`` keeps its work in ``.scores.jsonl.work``::

    plan.json             what was asked for; another run is refused
    part-000012.rejects   a JSON line per row of the part that has no score, with the reason
    part-000012.scores    a JSON line per sample that has; renamed into place last: a part that has it is finished

The joined files are ``scores.jsonl`` and ``scores.rejects.jsonl``.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from megatron_mixcpt.errors import ConfigError, DataError


class ScoreFiles:
    """The files of one run; one process writes."""

    def __init__(self, output: Path):
        self.output = output
        self.rejects = output.with_name(f"{output.name.removesuffix('.jsonl')}.rejects.jsonl")
        self.work = output.with_name(f".{output.name}.work")

    def check_new(self) -> None:
        """Raise ConfigError where the output is there already, or its folder is not."""
        if self.output.exists():
            raise ConfigError(f"--output {self.output} exists already; choose another, or remove it")
        if not self.output.absolute().parent.is_dir():
            raise ConfigError(f"--output {self.output}: there is no folder {self.output.parent}; make it first")

    def finished(self) -> set[int]:
        """Numbers of the parts that are done."""
        return {int(path.stem.removeprefix("part-")) for path in self.work.glob("part-*.scores")}

    def write_part(self, number: int, scores: Iterable[dict[str, Any]], rejects: Iterable[dict[str, Any]]) -> None:
        """Put a part aside."""
        base = self.work / f"part-{number:06d}"
        for suffix, lines in ((".rejects", rejects), (".scores", scores)):
            aside = base.with_suffix(f"{suffix}.tmp")
            aside.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
            aside.rename(base.with_suffix(suffix))

    def join(self, num_parts: int) -> None:
        """Join the parts to the output and its rejects, each written aside and renamed, the output last.

        Raises DataError, naming the first reason, where no sample has a score.
        """
        if not any(path.stat().st_size for path in self.work.glob("part-*.scores")):
            raise DataError(f"--output {self.output}: {self._first_reject()}")
        for target, suffix in ((self.rejects, ".rejects"), (self.output, ".scores")):
            aside = self.work / f"joined{suffix}"
            with open(aside, "wb") as file:
                for number in range(num_parts):
                    file.write((self.work / f"part-{number:06d}{suffix}").read_bytes())
            aside.rename(target)
        shutil.rmtree(self.work)

    def _first_reject(self) -> str:
        lines = (line for path in sorted(self.work.glob("part-*.rejects")) for line in path.read_bytes().splitlines())
        first = orjson.loads(next(lines, b"{}"))
        if not first:
            return "the input holds no sample; give other files"
        return f"no sample can be scored; the first, {first['source']}:{first['line']}: {first['detail']}"


def count_lines(path: Path, *names: str) -> Counter[tuple]:
    """How many lines of a JSONL file have which values of the fields ``names``."""
    with open(path, "rb") as file:
        return Counter(tuple(map(orjson.loads(line).get, names)) for line in file)

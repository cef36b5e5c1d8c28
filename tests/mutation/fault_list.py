"""The planted faults: ``faults/*.toml``, each a text of a source file, what takes its place, and who must notice.

=============  =================================================================================================
key            holds
=============  =================================================================================================
``what``       what is wrong then, in one line
``file``       below the root
``text``       is in the file exactly once
``becomes``    what takes its place
``tests``      files or tests of which one must fail: the fewest and the fastest
``survives``   why no test can see it; left out, it must be seen
=============  =================================================================================================
"""

import hashlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.unit.room_map import ROOMS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_mixcpt/"


@dataclass(frozen=True)
class Fault:
    """One planted fault."""

    number: int
    what: str
    file: str
    text: str
    becomes: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def room(self) -> str:
        """The room that the file is in; outside of the package, its folder."""
        if not self.file.startswith(PACKAGE):
            return str(Path(self.file).parent)
        inside = self.file.removeprefix(PACKAGE).removesuffix(".py")
        return max((room for room in ROOMS if f"{inside}/".startswith(f"{room}/")), key=len)

    @property
    def digest(self) -> str:
        """Of all but the number."""
        parts = asdict(self) | {"number": 0}
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def needs_ranks(self) -> bool:
        """Whether a test runs several processes: slow ones go last."""
        return any(not test.startswith("tests/unit/") for test in self.tests)

    def planted(self, source: str) -> str:
        """The file's text with the fault. Raises ValueError where the text to replace is not there exactly once."""
        if (count := source.count(self.text)) != 1:
            raise ValueError(f"fault {self.number} ({self.what}): its text is in {self.file} {count} times, not once")
        return source.replace(self.text, self.becomes)


def all_faults() -> list[Fault]:
    """In the order of their numbers, which count from 1 over the files by name."""
    found = [item for path in sorted((Path(__file__).parent / "faults").glob("*.toml")) for item in _of_file(path)]
    return [Fault(number=number, **item) for number, item in enumerate(found, start=1)]


def _of_file(path: Path) -> Iterator[dict]:
    for item in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]:
        yield item | {"tests": tuple(item["tests"])}


def missing_test(test: str, root: Path = ROOT) -> str | None:
    """What does not exist of ``tests/unit/test_file.py::test_name[parameters]``; None where all does."""
    file, _, name = test.partition("::")
    if not (root / file).is_file():
        return file
    name = name.partition("[")[0]
    defined = not name or re.search(rf"^def {re.escape(name)}\(", (root / file).read_text(encoding="utf-8"), re.M)
    return None if defined else test

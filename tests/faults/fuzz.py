"""Fuzz everything that reads users' files, for as long as you like, and print what was found.

    nice -n 19 python tests/faults/fuzz.py --minutes 60
    nice -n 19 python tests/faults/fuzz.py --minutes 5 --targets config_json idx --seed 7

Each target gets the same time, in turns; the suite runs a few examples of each (tests/unit/test_fuzz.py). A finding is
printed with its target, the error and the input's seed, once for each place in the code, and the exit code is 1.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mixcpt.errors import MixCPTError  # noqa: E402
from tests.faults.fuzz_targets import TARGETS  # noqa: E402
from tests.faults.fuzz_templates import CANARY  # noqa: E402

EXAMPLES_A_TURN = 200
# A reader that believes a header of terabytes dies of this.
ADDRESS_SPACE_BYTES = 16 * 2**30


def run_target(name: str, number: int, num_examples: int) -> Counter[str]:
    """Try ``num_examples`` inputs of one target; count successes and user errors. Raises what it finds."""
    ends: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(st.data())
    def search(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            place = Path(folder, "in")
            place.mkdir()
            try:
                TARGETS[name](data.draw, place)
                ends["accepted"] += 1
            except MixCPTError as error:
                assert "\n" not in str(error), f"more than one line: {error}"
                ends["refused"] += 1
            finally:
                os.chdir("/")
            assert not Path(folder, CANARY).exists(), "code was run"

    search()
    return ends


def place_of(error: BaseException) -> str:
    """Where an error was raised in this project's code, and what it is."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "megatron_mixcpt" in frame.filename]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "the target"
    return f"{where}: {type(error).__name__}: {str(error)[:200]!r}"


def main() -> None:
    """Fuzz until the time is over, then print a table and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0, help="of the first turn; each turn adds one")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    ends = {name: Counter() for name in options.targets}
    found: dict[str, str] = {}
    deadline, number = time.monotonic() + 60 * options.minutes, options.seed
    while time.monotonic() < deadline:
        for name in options.targets:
            try:
                ends[name] += run_target(name, number, EXAMPLES_A_TURN)
            except Exception as error:
                if (place := place_of(error)) not in found:
                    found[place] = f"{name}, seed {number}"
                    print(f"found: {name}, seed {number}: {place}", flush=True)
        number += 1
    for name, counts in ends.items():
        print(f"{name}: {counts.total():,} examples, {counts['accepted']:,} accepted, {counts['refused']:,} refused")
    total = sum(counts.total() for counts in ends.values())
    print(f"{total:,} examples in {options.minutes:g} minutes, {len(found)} found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

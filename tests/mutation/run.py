"""Plant each fault of the list in a copy of the tree, and see whether the tests meant for it fail::

    python -m tests.mutation.run                          # all that are not known yet, slow ones last
    python -m tests.mutation.run --rooms losses data      # those of some rooms and of the rooms inside them
    python -m tests.mutation.run --only 12 13 --again     # by number, also where the outcome is known
    python -m tests.mutation.run --table docs/evidence/mutations.md --only   # run nothing, write the table

Ends with 1 where a fault survives that the list does not say of why, or where a trial ended otherwise.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutation.fault_list import ROOT, Fault, all_faults
from tests.mutation.results import keep_result, read_results, table
from tests.mutation.trial import KILLED, LIMIT_S, SURVIVED, Outcome, copy_of_tree, preload, run_tests


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", default=[], metavar="ROOM", help="faults in these rooms alone")
    parser.add_argument("--only", nargs="*", type=int, metavar="NUMBER", help="faults of these numbers alone")
    parser.add_argument("--again", action="store_true", help="also those whose outcome is known")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutations.json", help="kept outcomes")
    parser.add_argument("--table", type=Path, help="Markdown file to write with all outcomes that are known")
    args = parser.parse_args(argv)
    faults, found = all_faults(), read_results(args.results)
    chosen = [fault for fault in faults if _is_chosen(fault, args)]
    waiting = sorted((fault for fault in chosen if args.again or fault.digest not in found), key=_slow_last)
    if waiting:
        preload()
        with copy_of_tree(ROOT) as tree:
            tried: dict[Fault, Outcome] = {}
            for fault in waiting:
                tried[fault] = try_fault(tree, fault)
                keep_result(args.results, found, fault, tried[fault])
                print(
                    f"{fault.number:>4} {tried[fault].seconds:>6} s  {tried[fault].status:<9} {fault.what}", flush=True
                )
            failing = failing_without(tree, tried.values())
            for fault, outcome in tried.items():
                if outcome.by in failing:
                    keep_result(args.results, found, fault, outcome._replace(status="its test fails without it too"))
    if args.table:
        args.table.write_text(table(faults, found), encoding="utf-8")
    known = [(fault, found[fault.digest]["status"]) for fault in chosen if fault.digest in found]
    wrong = [fault for fault, status in known if not _is_good(fault, status)]
    print(f"{len(known)} faults, {sum(status == KILLED for _, status in known)} killed; without a reason: {len(wrong)}")
    for fault in wrong:
        print(f"{fault.number:>4} {found[fault.digest]['status']}: {fault.file}: {fault.what}")
    return 1 if wrong else 0


def _is_chosen(fault: Fault, args: argparse.Namespace) -> bool:
    in_rooms = not args.rooms or any(f"{fault.room}/".startswith(f"{room}/") for room in args.rooms)
    return in_rooms and (args.only is None or fault.number in args.only)


def _slow_last(fault: Fault) -> tuple[bool, int]:
    return fault.needs_ranks, fault.number


def _is_good(fault: Fault, status: str) -> bool:
    return status == KILLED or (status == SURVIVED and bool(fault.survives))


def try_fault(tree: Path, fault: Fault) -> Outcome:
    """Plant a fault in the tree, run its tests, and take it out again."""
    path = tree / fault.file
    source = path.read_text(encoding="utf-8")
    path.write_text(fault.planted(source), encoding="utf-8")
    try:
        return run_tests(tree, fault.tests)
    finally:
        path.write_text(source, encoding="utf-8")


def failing_without(tree: Path, outcomes: Iterable[Outcome]) -> set[str]:
    """Those of the tests that killed a fault which fail without one, too."""
    tests, failing = {outcome.by for outcome in outcomes if "::" in outcome.by}, set[str]()
    while tests and (outcome := run_tests(tree, sorted(tests), limit_s=LIMIT_S * len(tests))).status != SURVIVED:
        failing |= tests & {outcome.by} or tests  # where pytest names none, none of them says anything
        tests -= failing
    return failing


if __name__ == "__main__":
    sys.exit(main())

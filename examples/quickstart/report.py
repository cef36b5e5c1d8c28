"""Print the perplexities of two evaluations side by side: a model before its training and after.

    python examples/quickstart/report.py --before evaluation-before --after evaluation-after --output report.txt

Both are outputs of tools/evaluate.py on the same texts. Perplexity is per token, so it compares models of one tokenizer
only; bits per byte compares any.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from megatron_mixcpt.errors import ConfigError, exit_on_user_error

MEASURES = {"perplexity": "perplexity", "bits per byte": "bits_per_byte"}


def read_perplexities(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of each text set in an evaluation. Raises ConfigError for another folder."""
    path = folder / "results.json"
    if not path.is_file():
        raise ConfigError(f"{folder} is not an output of tools/evaluate.py: it has no {path.name}")
    return json.loads(path.read_text(encoding="utf-8"))["perplexity"]


def table(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> str:
    """One line for each text and measure: before, after, change in percent."""
    lines = [f"{'held-out text':<18}{'tokens':>8}  {'measure':<14}{'before':>9}{'after':>9}{'change':>9}"]
    for name, old in before.items():
        for row, (measure, key) in enumerate(MEASURES.items()):
            was, now = old[key], after[name][key]
            head = f"{name:<18}{old['tokens']:>8}" if row == 0 else " " * 26
            lines.append(f"{head}  {measure:<14}{was:>9.3f}{now:>9.3f}{(now / was - 1) * 100:>+8.1f}%")
    return "\n".join(lines)


@exit_on_user_error
def main() -> None:
    """Print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="output of tools/evaluate.py")
    parser.add_argument("--after", type=Path, required=True, metavar="DIR", help="output of tools/evaluate.py")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="text file for the table")
    args = parser.parse_args()
    before, after = read_perplexities(args.before), read_perplexities(args.after)
    if before.keys() != after.keys():
        raise ConfigError(f"{args.before} has texts {', '.join(before)}; {args.after} has {', '.join(after)}")
    report = table(before, after)
    print(report)
    aside = args.output.with_name(args.output.name + ".tmp")
    aside.write_text(report + "\n", encoding="utf-8")
    os.replace(aside, args.output)


if __name__ == "__main__":
    main()

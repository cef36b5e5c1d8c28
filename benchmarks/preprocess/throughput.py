"""How fast preprocessing is, beside the floor (the encoder alone) and its peers, all in one run.

    python benchmarks/preprocess/throughput.py --tokenizer models/SmolLM2-135M --peers cache/peers \\
        [--megabytes 160] [--slow-megabytes 4] [--repeats 3] [--input corpus.jsonl]

Without ``--input`` the corpus is the Python code that this machine has: the standard library, then the installed
packages. Each row is a separate process, with one thread per process. ``MB/s`` is megabytes of text over seconds net
of start-up, where start-up is the same command on a corpus of one document: ``wall`` counts seconds on the clock,
``CPU`` processor seconds of all processes, which other work on the machine disturbs less. Medians of the repeats, with
the smallest and largest wall rate; ``memory`` is the largest sum of proportional set sizes, in MiB, of one more run.
Megatron's own ``tools/preprocess_data.py`` is not in megatron-core's wheel; the first row does what it does, one
document at a time: JSON, transformers' tokenizer, and the engine's ``IndexedDatasetBuilder``.
"""

import argparse
import json
import os
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from measuring import Measured, measure
from peers import DATATROVE, ENCODER_ALONE, HUGGING_FACE_ALONE, PLAIN_WAY, datatrove_python

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_mixture.py"


class Row(NamedTuple):
    """A line of the table."""

    label: str
    corpus: str
    """``slow`` or ``large``."""
    command: Callable[[Path], list[str]]
    """The command for a corpus."""


def main() -> None:
    """Make the corpora, run every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--megabytes", type=float, default=160)
    parser.add_argument("--slow-megabytes", type=float, default=4, help="corpus of the rows that would take minutes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input", type=Path, help='JSONL with "text"')
    parser.add_argument(
        "--peers", type=Path, help="folder for virtual environments of peers; without it they are left out"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpora = {}
        for name, megabytes in (("large", arguments.megabytes), ("slow", arguments.slow_megabytes), ("one", 0)):
            path = Path(folder) / name / "corpus.jsonl"
            path.parent.mkdir()
            corpora[name] = (path, write_corpus(path, megabytes * 1e6, arguments.input))
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
        print("|  | MB | start-up s | wall MB/s (range) | CPU MB/s | memory MiB |\n|---|---|---|---|---|---|")
        for row in rows(arguments.tokenizer, arguments.peers, Path(folder) / "out"):
            if arguments.only not in row.label:
                continue
            print(line_of(row, corpora, arguments.repeats, Path(folder) / "out"), flush=True)


def rows(tokenizer: str, peers: Path | None, output: Path) -> Iterator[Row]:
    """The table's rows; notes on those that cannot be run are printed."""

    def script(code: str, python: str = sys.executable) -> Callable[[Path], list[str]]:
        return lambda path: [python, "-c", code, str(path), tokenizer, str(output)]

    def ours(workers: int) -> Callable[[Path], list[str]]:
        flags = ["--tokenizer", tokenizer, "--output", str(output), "--workers", str(workers)]
        return lambda path: [sys.executable, str(TOOL), "--cpt", str(path), *flags]

    yield Row("transformers + engine's builder", "slow", script(PLAIN_WAY))
    python, about = datatrove_python(peers) if peers else (None, "no --peers given")
    if python:
        yield Row(f"datatrove {about}", "slow", script(DATATROVE, python))
    else:
        print(f"| datatrove | not run: {about} | | | | |")
    yield Row("Hugging Face tokenizers alone", "slow", script(HUGGING_FACE_ALONE))
    yield Row("JSON and fastokens alone (the floor)", "large", script(ENCODER_ALONE))
    yield Row("preprocess_mixture, 1 worker", "large", ours(1))
    yield Row("preprocess_mixture, 2 workers", "large", ours(2))


def line_of(row: Row, corpora: dict[str, tuple[Path, int]], repeats: int, output: Path) -> str:
    """Run a row's command on one document and on its corpus, some times, and return its line."""
    starts: list[Measured] = []
    wholes: list[Measured] = []
    path, size = corpora[row.corpus]
    for _ in range(repeats):
        starts.append(measure(row.command(corpora["one"][0]), output))
        wholes.append(measure(row.command(path), output))
    start = statistics.median(each.wall for each in starts)
    start_cpu = statistics.median(each.cpu for each in starts)
    walls = sorted(size / 1e6 / (each.wall - start) for each in wholes)
    cpu = statistics.median(size / 1e6 / (each.cpu - start_cpu) for each in wholes)
    memory = measure(row.command(path), output, watch_memory=True).memory
    rate = f"{statistics.median(walls):.1f} ({walls[0]:.1f} to {walls[-1]:.1f})"
    return f"| {row.label} | {size / 1e6:.0f} | {start:.2f} | {rate} | {cpu:.1f} | {memory:.0f} |"


def write_corpus(path: Path, num_bytes: float, given: Path | None) -> int:
    """Write documents until they are ``num_bytes`` of text, at least one; returns how many bytes it came to."""
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts_of(given) if given else python_files():
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= num_bytes:
                break
    return written


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def python_files() -> Iterator[str]:
    """The text of every Python file of this interpreter and its packages, each once."""
    seen = set()
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip() and hash(text) not in seen:
                seen.add(hash(text))
                yield text


if __name__ == "__main__":
    main()

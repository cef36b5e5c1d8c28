"""How fast preprocessing is, beside the encoder alone and the plain way, all in one run.

    python benchmarks/data/throughput.py --tokenizer models/SmolLM2-135M [--megabytes 160] [--input corpus.jsonl]

Without ``--input`` the corpus is the Python code that this machine has: the standard library, then the installed
packages. Each row is a process of its own. ``CPU`` is the time that all its processes used together, which other work
on the machine disturbs less than ``wall``; ``MB/s`` is megabytes of text over CPU seconds net of start-up, where
start-up is the same command on a corpus of one document. ``memory`` is the largest sum of proportional set sizes, MiB.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_mixture.py"

ENCODER_ALONE = """
import sys, fastokens, orjson
tokenizer = fastokens.Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
texts = []
for line in open(sys.argv[1], "rb"):
    texts.append(orjson.loads(line)["text"])
    if sum(map(len, texts[-64:])) > 1 << 20 or len(texts) >= 64:
        tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        texts = []
tokenizer.encode_batch_flat(texts, split_special_tokens=True)
"""
HUGGING_FACE_ALONE = """
import sys, json, itertools, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
with open(sys.argv[1]) as file:
    while texts := [json.loads(line)["text"] for line in itertools.islice(file, 64)]:
        tokenizer.encode_batch_fast(texts, add_special_tokens=False)
"""
PLAIN_WAY = """
import sys, json, torch
from transformers import AutoTokenizer
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
builder = IndexedDatasetBuilder(sys.argv[3] + "/plain.bin", dtype=DType.optimal_dtype(len(tokenizer)))
with open(sys.argv[1]) as file:
    for line in file:
        ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False) + [tokenizer.eos_token_id]
        builder.add_document(torch.IntTensor(ids), [len(ids)])
builder.finalize(sys.argv[3] + "/plain.idx")
"""


def main() -> None:
    """Make the corpora, run every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--megabytes", type=float, default=160)
    parser.add_argument(
        "--slow-megabytes", type=float, default=8, help="corpus of the rows that take minutes otherwise"
    )
    parser.add_argument("--input", type=Path, help='JSONL with "text"')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpora = {}
        for name, megabytes in (("large", arguments.megabytes), ("slow", arguments.slow_megabytes), ("one", 0)):
            path = Path(folder) / f"{name}.jsonl"
            corpora[name] = (path, write_corpus(path, megabytes * 1e6, arguments.input))
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
        print(f"{'':<34}{'MB':>6}{'start s':>9}{'CPU s':>8}{'wall s':>8}{'MB/s':>8}{'memory':>8}")
        for label, corpus, command in rows(arguments.tokenizer, folder):
            start = measure(command(corpora["one"][0]), folder)
            cpu, wall, memory = measure(command(corpora[corpus][0]), folder)
            megabytes = corpora[corpus][1] / 1e6
            rate = megabytes / (cpu - start[0])
            print(
                f"{label:<34}{megabytes:>6.0f}{start[0]:>9.2f}{cpu:>8.2f}{wall:>8.2f}{rate:>8.1f}{memory:>8.0f}",
                flush=True,
            )


def rows(tokenizer: str, folder: str) -> list:
    """(label, corpus, command for a file) of each row of the table."""

    def script(code: str):
        return lambda path: [sys.executable, "-c", code, str(path), tokenizer, folder]

    def ours(workers: int):
        flags = ["--tokenizer", tokenizer, "--output", f"{folder}/out", "--workers", str(workers)]
        return lambda path: [sys.executable, str(TOOL), "--cpt", str(path), *flags]

    return [
        ("transformers + engine's builder", "slow", script(PLAIN_WAY)),
        ("Hugging Face tokenizers alone", "slow", script(HUGGING_FACE_ALONE)),
        ("JSON and fastokens alone", "large", script(ENCODER_ALONE)),
        ("preprocess_mixture, 1 worker", "large", ours(1)),
        ("preprocess_mixture, 2 workers", "large", ours(2)),
    ]


def measure(command: list[str], folder: str) -> tuple[float, float, float]:
    """Run a command: (CPU seconds, wall seconds, largest memory in MiB) of it and its children."""
    shutil.rmtree(f"{folder}/out", ignore_errors=True)
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    before, started, memory = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            memory = max(memory, memory_of(process.pid))
            time.sleep(0.05)
    if process.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, memory


def memory_of(pid: int) -> float:
    """Proportional set size in MiB of a process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        sizes = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in (pid, *children)]
    except OSError:
        return 0.0
    return sum(int(size.partition("Pss:")[2].split()[0]) for size in sizes) / 1024


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

"""Collect the quickstart's domain: Python files of the running interpreter's standard library, some of them held out.

    python examples/quickstart/collect_domain.py --output domain.jsonl --heldout domain_heldout.jsonl

Everyone has these files and needs no download for them. Which are taken depends on the interpreter's version alone:
sorted, then shuffled with a fixed seed. Held-out files are in no training record. Each record is one file:
{"text": ..., "source": path below the library}.
"""

import argparse
import json
import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# No tests, demos or other people's packages, no tables of characters or help texts in Python's clothes.
EXCLUDED_FOLDERS = set("encodings ensurepip idlelib lib2to3 pydoc_data site-packages test tests turtledemo".split())
FILE_BYTES = range(3_000, 30_000)  # shorter files hold little code, longer ones would crowd out the variety
SEED = 2407


def library_files(library: Path) -> list[Path]:
    """Paths of the files to choose from, sorted, relative to ``library``."""
    found = (path.relative_to(library) for path in library.rglob("*.py"))
    wanted = (path for path in found if not EXCLUDED_FOLDERS.intersection(path.parts))
    return sorted(path for path in wanted if (library / path).stat().st_size in FILE_BYTES)


def take(paths: Iterator[Path], library: Path, num_bytes: int, longest: int | None = None) -> list[dict[str, str]]:
    """Records of the next files of ``paths`` until they hold ``num_bytes`` bytes.

    With ``longest`` each text is cut to that many characters, at the end of a line.
    """
    records: list[dict[str, str]] = []
    size = 0
    while size < num_bytes:
        path = next(paths)
        text = (library / path).read_text(encoding="utf-8")
        if longest is not None and len(text) > longest:
            text = text[: text.rindex("\n", 0, longest) + 1]
        records.append({"text": text, "source": path.as_posix()})
        size += len(text.encode())
    return records


def write_jsonl(path: Path, records: list[dict[str, str]]) -> None:
    """Write the records aside and move them to ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    os.replace(aside, path)
    num_bytes = sum(len(record["text"].encode()) for record in records)
    print(f"{path.parent.name}/{path.name}: {len(records)} texts, {num_bytes / 1e3:.0f} kB")


def main() -> None:
    """Choose, hold out, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSONL file of the training documents")
    parser.add_argument("--heldout", type=Path, required=True, help="JSONL file of the held-out documents")
    parser.add_argument("--train-bytes", type=int, default=130_000, help="bytes of training text, about 4 to a token")
    parser.add_argument("--heldout-bytes", type=int, default=30_000, help="bytes of held-out text")
    args = parser.parse_args()
    library = Path(sysconfig.get_path("stdlib"))
    chosen = library_files(library)
    random.Random(SEED).shuffle(chosen)
    paths = iter(chosen)
    heldout = take(paths, library, args.heldout_bytes, longest=2_500)
    write_jsonl(args.heldout, heldout)
    write_jsonl(args.output, take(paths, library, args.train_bytes))


if __name__ == "__main__":
    main()

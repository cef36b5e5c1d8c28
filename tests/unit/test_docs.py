"""The documents: links lead somewhere, what they name exists, and the reference of flags is what the parsers say."""

import ast
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    + [*(ROOT / "benchmarks").rglob("*.md"), *(ROOT / "tests").rglob("*.md")]
)
IDS = [str(path.relative_to(ROOT)) for path in PAGES]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# A path of this repository as a document writes it; {a,b} and * stand for several.
REPOSITORY_PATH = re.compile(
    r"(?<![\w/.-])(?:\.ci|benchmarks|docs|examples|megatron_mixcpt|tests|tools)/[\w./{},*-]*[\w*/}]"
)
MODULE = re.compile(r"(?<![\w/.])(?:megatron_mixcpt|tests|examples)(?:\.\w+)+")
# A tool's flags in a command: from its name to the end of the command.
COMMAND = re.compile(r"(?:^|[\s/])tools/(\w+\.py)((?:[^\n`|;#]|\\\n)*)", re.MULTILINE)
TRAINERS = ("pretrain_mixcpt.py", "train_sft.py", "train_dpo.py")  # they take Megatron's flags as well
WRITTEN_BY_COMMANDS = ("build/",)


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and Python-Markdown make it."""
    text = unicodedata.normalize("NFKC", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading))
    return re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """The anchors of a page."""
    return {slug(line.lstrip("#")) for line in prose(path).splitlines() if re.match(r"#{1,6} ", line)}


def broken_links(path: Path, text: str) -> Iterator[str]:
    """The links in ``text``, a page at ``path``, that lead nowhere."""
    for target in LINK.findall(text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{target}: {file.name} has no such heading"


def missing_paths(text: str) -> Iterator[str]:
    """The repository's paths in ``text`` that are not there."""
    for match in REPOSITORY_PATH.findall(text):
        for name in expand(match):
            if not (any(ROOT.glob(name.rstrip("/"))) if "*" in name else (ROOT / name).exists()):
                yield name


def expand(name: str) -> list[str]:
    """``a/{b,c}.sh`` -> ``a/b.sh``, ``a/c.sh``."""
    match = re.search(r"\{([^}]*)\}", name)
    if not match:
        return [name]
    return [each for part in match[1].split(",") for each in expand(name[: match.start()] + part + name[match.end() :])]


def exists(module: str) -> bool:
    """Whether a dotted name is a module of the repository, or a name that one defines."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        file = ROOT.joinpath(*parts[:length])
        if file.is_dir() and length == len(parts):
            return True
        if file.with_suffix(".py").is_file():
            return length == len(parts) or parts[length] in defined_in(file.with_suffix(".py"))
    return False


def defined_in(path: Path) -> set[str]:
    """The names at the top level of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)} | {getattr(node, "name", "")}
    return names


def documented_flags() -> dict[str, set[str]]:
    """Tool -> its flags, from the reference."""
    sections = re.split(r"^## ", (ROOT / "docs/reference/flags.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {text.split("\n", 1)[0].strip(): set(re.findall(r"(?<=[`\s>])--[\w-]+", text)) for text in sections[1:]}


def unknown_flags(text: str) -> Iterator[str]:
    """Flags in commands of tools that the tools do not have."""
    known = documented_flags()
    for tool, words in COMMAND.findall(text):
        if tool not in TRAINERS:
            yield from (f"{tool} {flag}" for flag in re.findall(r"--[\w-]+", words) if flag not in known.get(tool, ()))


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_links_lead_somewhere(path: Path) -> None:
    assert not list(broken_links(path, prose(path)))


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_what_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "Written by docs/generate_reference.py" in text:
        return  # it repeats the code, which is looked through below
    missing = [name for name in missing_paths(text) if not name.startswith(WRITTEN_BY_COMMANDS)]
    missing += [name for name in MODULE.findall(text) if not name.endswith((".py", ".md", ".sh")) and not exists(name)]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_tools_have_the_flags_that_commands_give_them(path: Path) -> None:
    assert not list(unknown_flags(path.read_text(encoding="utf-8")))


def test_code_names_documents_that_exist() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [
        f"{name}: {document}"
        for name in listed.splitlines()
        if name.endswith((".py", ".sh", ".sbatch", ".yaml", ".html")) and name != "tests/unit/test_docs.py"
        for document in re.findall(r"\bdocs/[\w/-]+\.md", (ROOT / name).read_text(encoding="utf-8"))
        if not (ROOT / document).is_file()
    ]
    assert not found


def test_the_site_shows_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = [entry if isinstance(entry, str) else next(iter(entry.values())) for entry in settings["nav"]]
    shown = {page for entry in entries for page in ([entry] if isinstance(entry, str) else entry)}
    assert shown == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


def test_the_reference_of_flags_is_not_stale() -> None:
    command = [sys.executable, "docs/generate_reference.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_leads_nowhere_is_found() -> None:
    page = ROOT / "docs/index.md"
    text = "[a](how-to/gone.md) [b](index.md#gone) [c](https://example.com/x) [d](index.md#reference)"
    assert [found.split(":")[0] for found in broken_links(page, text)] == ["how-to/gone.md", "index.md#gone"]
    assert list(missing_paths("tools/gone.py, `tools/{plan,lost}.py` and examples/sft_*.sh")) == [
        "tools/gone.py",
        "tools/lost.py",
    ]
    assert exists("megatron_mixcpt.losses.lssd.vocab_parallel_mixcpt_loss")
    assert not exists("megatron_mixcpt.losses.lssd.gone") and not exists("megatron_mixcpt.gone")
    assert list(unknown_flags("python tools/report.py F --domain X --gone Y \\\n --title T\n")) == ["report.py --gone"]

"""The package's imports, read from the source: they keep to ``room_map.py``, and third parties are declared."""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.room_map import HEAVY, ROOMS, Room, table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_mixcpt"

# Who imports the rooms from outside the package.
DOORS = frozenset({"tools", "examples"})
# Rooms that name their third parties one by one; all others may take whatever pyproject.toml declares.
THIRD_PARTIES = {"errors": frozenset[str](), "losses": frozenset({"torch"}), "cpu_emulation": frozenset({"torch"})}
# Preparing data is a job for machines without the engine; its start must not cost the import of torch either.
PREPROCESS_ENTRY = "megatron_mixcpt.data.preprocessing.run"
MOST_MODULES = 18
"""Of a folder that a newcomer can take in at a glance."""
# A list by nature: each file is a family of models, all are alike, and the registry names them.
LISTS = {"megatron_mixcpt/conversion/architectures/families"}
# Comes with a GPU's software, and is imported only where the engine has found it.
ON_GPUS = {"transformer_engine"}
# Module names that differ from the distribution's name in pyproject.toml.
DISTRIBUTIONS = {"fla": "flash-linear-attention", "lm_eval": "lm-eval", "megatron": "megatron-core", "yaml": "pyyaml"}


def source_files() -> list[Path]:
    """Every Python file that is shipped: the package, the tools and the examples."""
    return sorted(path for folder in (PACKAGE, "tools", "examples") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """``megatron_mixcpt/losses/lssd.py`` -> ``megatron_mixcpt.losses.lssd``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room of a module or of a name in one: a folder (``data/chat``), a module beside the folders, or a door.

    Empty for the package itself.
    """
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return parts[0]
    folder, depth = ROOT / PACKAGE, 1
    while depth < len(parts) and (folder / parts[depth]).is_dir():
        folder, depth = folder / parts[depth], depth + 1
    inside = folder.relative_to(ROOT / PACKAGE).as_posix()
    return inside if inside != "." else "".join(parts[1:2]).replace("__version__", "")


def imports_of(path: Path, *, at_load_only: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules that a file imports and their lines.

    ``from a.b import c`` gives ``a.b.c``, for c may be a module. With ``at_load_only`` imports inside functions, which
    cost nothing until they are called, are left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    nodes = list(ast.walk(tree))
    if at_load_only:
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
        lazy = {inner for function in functions for inner in ast.walk(function)}
        nodes = [node for node in nodes if node not in lazy]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                keep = len(package) - node.level + (path.name == "__init__.py")
                base = ".".join(package[:keep] + ([node.module] if node.module else []))
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def violation(module: str, imported: str) -> str | None:
    """Why ``module`` may not import ``imported``, or None where it may."""
    name, top = room_of(module), imported.split(".")[0]
    if top in ("tools", "tests"):
        return "nothing imports tools or tests"
    if name in DOORS:
        return None
    room = ROOMS.get(name, Room("the package itself"))
    if top == PACKAGE:
        target = room_of(imported)
        is_near = target == name or target.startswith(f"{name}/") or name.startswith(f"{target}/")
        is_allowed = is_near or target in room.may_import | {"", "errors"}
        return None if is_allowed else f"room '{name}' may not import room '{target}'"
    if name in THIRD_PARTIES and top not in THIRD_PARTIES[name] | set(sys.stdlib_module_names):
        return f"room '{name}' may import {sorted(THIRD_PARTIES[name]) or 'the standard library only'}"
    if (heavy := heavy_name(imported)) and heavy not in HEAVY[room.takes]:
        return f"room '{name}' may not import {heavy}"
    return None


def heavy_name(imported: str) -> str | None:
    """Of an import that costs seconds: ``torch``, ``megatron.core`` or ``megatron.training``; None for others."""
    parts = imported.split(".")
    if parts[0] == "megatron":
        return ".".join(parts[:2])
    return parts[0] if parts[0] == "torch" else None


def declared_distributions() -> set[str]:
    """Names of the dependencies in pyproject.toml, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {re.split(r"[^\w-]", requirement)[0].lower() for requirements in lists for requirement in requirements}


def modules_loaded_with(module: str) -> Iterator[tuple[str, str]]:
    """(importer, imported) for everything that importing one of our modules loads, through our own modules."""
    files = {module_name(path): path for path in source_files()}
    pending, seen = [module], set()
    while pending:
        current = pending.pop()
        if current in seen or current not in files:
            continue
        seen.add(current)
        pending.extend(current.rsplit(".", depth)[0] for depth in range(1, current.count(".") + 1))
        for imported, _ in imports_of(files[current], at_load_only=True):
            yield current, imported
            pending += [imported, imported.rpartition(".")[0]]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_map(path: Path) -> None:
    module = module_name(path)
    known = {"", *ROOMS, *DOORS}
    assert room_of(module) in known, f"{path} is in no room of the map: add it to room_map.py, with its arrows"
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}: {reason}"
        for imported, line in imports_of(path)
        if (reason := violation(module, imported))
    ]
    assert not found, "\n".join(found)


def test_the_map_has_no_circle() -> None:
    assert circle({name: set(room.may_import) for name, room in ROOMS.items()}) is None


def test_modules_import_one_another_in_no_circle() -> None:
    files = {module_name(path): path for path in source_files()}
    arrows = {name: {owner(imported, files) for imported, _ in imports_of(path)} for name, path in files.items()}
    assert circle({name: targets & files.keys() - {name} for name, targets in arrows.items()}) is None


def owner(imported: str, files: dict[str, Path]) -> str:
    """The module that an imported name is of: itself, or what it is a name in."""
    return imported if imported in files else imported.rpartition(".")[0]


def circle(arrows: dict[str, set[str]]) -> list[str] | None:
    """Names that lead back to their first, or None where there are none."""
    done: set[str] = set()

    def follow(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        found = (follow(target, [*trail, name]) for target in sorted(arrows.get(name, ())))
        first = next((way for way in found if way), None)
        done.add(name)
        return first

    return next((way for name in arrows if (way := follow(name, []))), None)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_every_arrow_of_the_map_is_used() -> None:
    used: dict[str, set[str]] = {}
    for path in source_files():
        targets = {room_of(imported) for imported, _ in imports_of(path) if imported.split(".")[0] == PACKAGE}
        used.setdefault(room_of(module_name(path)), set()).update(targets)
    idle = [f"{name} -> {target}" for name, room in ROOMS.items() for target in room.may_import - used.get(name, set())]
    assert not idle, f"no module uses {', '.join(idle)}: take the arrows off the map"


def test_a_room_can_be_taken_in_at_a_glance() -> None:
    folders = Counter(path.parent for path in (ROOT / PACKAGE).rglob("*.py") if path.name != "__init__.py")
    crowded = {str(folder.relative_to(ROOT)): number for folder, number in folders.items() if number > MOST_MODULES}
    crowded = {folder: number for folder, number in crowded.items() if folder not in LISTS}
    assert not crowded, f"more than {MOST_MODULES} modules: {crowded}; which room is missing?"


def test_the_map_in_contributing_is_this_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert table() in text, "the table is another: put the output of 'python tests/unit/room_map.py' there"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_third_parties_are_declared(path: Path) -> None:
    ours = {PACKAGE, path.relative_to(ROOT).parts[0], *(sibling.stem for sibling in path.parent.glob("*.py"))}
    for imported, line in imports_of(path):
        top = imported.split(".")[0]
        if top in sys.stdlib_module_names or top in ours | ON_GPUS:
            continue
        distribution = DISTRIBUTIONS.get(top, top).lower()
        assert distribution in declared_distributions(), f"{path}:{line}: {top} is not in pyproject.toml"


def test_only_tests_import_testing() -> None:
    for path in source_files():
        users = [line for imported, line in imports_of(path) if imported.startswith(f"{PACKAGE}.testing")]
        assert not users or room_of(module_name(path)) == "testing", f"{path}:{users[0]} imports {PACKAGE}.testing"


def test_preprocessing_loads_neither_torch_nor_the_engine() -> None:
    found = [(importer, name) for importer, name in modules_loaded_with(PREPROCESS_ENTRY) if name != "__future__"]
    assert found, f"{PREPROCESS_ENTRY} is gone: name the new entry in this test"
    heavy = [pair for pair in found if pair[1].split(".")[0] in ("torch", "megatron")]
    assert not heavy, f"loaded on the way to {PREPROCESS_ENTRY}: {heavy}"


@pytest.mark.parametrize(
    ("module", "imported", "reason"),
    [
        ("megatron_mixcpt.losses.kd", "megatron_mixcpt.training.model.build", "may not import room 'training'"),
        ("megatron_mixcpt.losses.kd", "megatron.core.parallel_state", r"may import \['torch'\]"),
        ("megatron_mixcpt.distillation.kd", "megatron.training.get_args", "may not import megatron.training"),
        ("megatron_mixcpt.data.mixture.plan", "torch.nn", "may not import torch"),
        ("megatron_mixcpt.data.reading.presets", "megatron_mixcpt.data.preprocessing.run", "room 'data/preprocessing'"),
        ("megatron_mixcpt.errors", "megatron_mixcpt.config.CPTConfig", "may not import room 'config'"),
        ("megatron_mixcpt.config", "megatron_mixcpt.losses.lssd", "may not import room 'losses'"),
        ("tools.preprocess_mixture", "tools.helpers", "nothing imports tools"),
    ],
)
def test_an_arrow_that_is_not_on_the_map_is_found(module: str, imported: str, reason: str) -> None:
    assert re.search(reason, violation(module, imported) or "")


def test_an_arrow_of_the_map_is_allowed() -> None:
    assert violation("megatron_mixcpt.training.pretraining.cpt", "megatron.training.pretrain") is None
    assert violation("megatron_mixcpt.training.pretraining.cpt", "megatron_mixcpt.losses.lssd") is None
    assert violation("megatron_mixcpt.data.preprocessing.run", "megatron_mixcpt.data.preprocessing.parts.files") is None
    assert violation("megatron_mixcpt.losses.kd", "megatron_mixcpt.losses.lssd") is None

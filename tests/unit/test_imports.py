"""The package's imports, read from the source: they point down the layers only, and third parties are declared.

Layers (who may import whom) are the table below. It is the design: a new arrow is a decision, not a mend of this test.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_mixcpt"

# Layer -> the other layers it may import. Every layer may import itself and the leaves below.
MAY_IMPORT = {
    "config": set(),
    "errors": set(),
    "named_paths": set(),
    "losses": set(),
    "cpu_emulation": set(),
    "planning": {"conversion"},
    "data": set(),
    "models": {"losses"},
    "conversion": {"models", "cpu_emulation"},
    "distillation": {"models", "losses", "conversion"},
    "training": {"distillation", "evaluation", "models", "conversion", "data", "losses", "cpu_emulation"},
    "evaluation": {"data", "losses", "models", "conversion", "cpu_emulation"},
    "alignment": {"evaluation", "data", "losses"},
    "report": {"conversion", "data"},
    "testing": {"models", "conversion", "data", "losses", "cpu_emulation"},
    "tools": {"report", "planning", "training", "alignment", "evaluation", "conversion", "data", "cpu_emulation"},
    "examples": {"training", "cpu_emulation"},
}
LEAVES = {"config", "errors", "named_paths"}  # errors imports nothing of ours, the others raise what it defines
# Layer -> third parties it may import, where that is less than everything declared.
THIRD_PARTIES = {"errors": set(), "losses": {"torch"}, "cpu_emulation": {"torch"}}
MAY_IMPORT_ENGINE_TRAINING = {"training", "evaluation", "testing"}
# Preparing data is a job for machines without the engine; its start must not cost the import of torch either.
PREPROCESS_ENTRY = "megatron_mixcpt.data.preprocessing.run"
# Comes with a GPU's software, and is imported only where the engine has found it.
ON_GPUS = {"transformer_engine"}
# Module names that differ from the distribution's name in pyproject.toml.
DISTRIBUTIONS = {"lm_eval": "lm-eval", "megatron": "megatron-core", "yaml": "pyyaml"}


def source_files() -> list[Path]:
    """Every Python file that is shipped: the package, the tools and the examples."""
    return sorted(path for folder in (PACKAGE, "tools", "examples") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """``megatron_mixcpt/losses/lssd.py`` -> ``megatron_mixcpt.losses.lssd``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The layer of one of our modules: the first name below the package, or ``tools``, or ``examples``."""
    parts = module.split(".")
    return parts[0] if parts[0] != PACKAGE else parts[1] if len(parts) > 1 else ""


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
    layer, top = layer_of(module), imported.split(".")[0]
    if top == PACKAGE:
        target = layer_of(imported)
        allowed = MAY_IMPORT.get(layer, set()) | LEAVES | {layer, "__version__"}
        if layer == "errors":
            allowed = {layer}
        return None if target in allowed else f"layer '{layer}' may not import layer '{target}'"
    if top in ("tools", "tests"):
        return "nothing imports tools or tests"
    if imported.startswith("megatron.training") and layer not in MAY_IMPORT_ENGINE_TRAINING:
        return f"layer '{layer}' may import megatron.core only"
    if layer in THIRD_PARTIES and top not in THIRD_PARTIES[layer] | set(sys.stdlib_module_names):
        return f"layer '{layer}' may import {sorted(THIRD_PARTIES[layer]) or 'the standard library only'}"
    return None


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
def test_imports_point_down_the_layers(path: Path) -> None:
    module = module_name(path)
    assert layer_of(module) in MAY_IMPORT | {"": None}, f"{path} is in no layer: add it to the table, with its arrows"
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}: {reason}"
        for imported, line in imports_of(path)
        if (reason := violation(module, imported))
    ]
    assert not found, "\n".join(found)


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
        assert not users or layer_of(module_name(path)) == "testing", f"{path}:{users[0]} imports {PACKAGE}.testing"


def test_preprocessing_loads_neither_torch_nor_the_engine() -> None:
    found = [(importer, name) for importer, name in modules_loaded_with(PREPROCESS_ENTRY) if name != "__future__"]
    assert found, f"{PREPROCESS_ENTRY} is gone: name the new entry in this test"
    heavy = [pair for pair in found if pair[1].split(".")[0] in ("torch", "megatron")]
    assert not heavy, f"loaded on the way to {PREPROCESS_ENTRY}: {heavy}"


@pytest.mark.parametrize(
    ("module", "imported", "reason"),
    [
        ("megatron_mixcpt.losses.kd", "megatron_mixcpt.training.pretraining.cpt", "may not import layer 'training'"),
        ("megatron_mixcpt.losses.kd", "megatron.core.parallel_state", r"may import \['torch'\]"),
        ("megatron_mixcpt.data.mixture.plan", "megatron.training.get_args", "megatron.core only"),
        ("megatron_mixcpt.errors", "megatron_mixcpt.config.CPTConfig", "may not import layer 'config'"),
        ("megatron_mixcpt.config", "megatron_mixcpt.losses.lssd", "may not import layer 'losses'"),
        ("tools.preprocess_mixture", "tools.helpers", "nothing imports tools"),
    ],
)
def test_an_upward_import_is_found(module: str, imported: str, reason: str) -> None:
    assert re.search(reason, violation(module, imported) or "")


def test_a_downward_import_is_allowed() -> None:
    assert violation("megatron_mixcpt.training.pretraining.cpt", "megatron.training.pretrain") is None
    assert violation("megatron_mixcpt.training.pretraining.cpt", "megatron_mixcpt.losses.lssd") is None
    assert violation("megatron_mixcpt.losses.kd", "megatron_mixcpt.losses.lssd") is None

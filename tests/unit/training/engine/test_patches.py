"""The register of engine changes: it fits the installed engine, the package's source keeps to it, and it applies once.

``engine_signatures.txt`` holds the signature of each entry. After an upgrade of the engine, and once the modules that
the test named have been looked at::

    python -m tests.unit.training.engine.test_patches > tests/unit/training/engine/engine_signatures.txt
"""

import ast
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_mixcpt.training.engine import patches
from megatron_mixcpt.training.engine.patches import OVERRIDDEN, READ, REGISTER, REPLACED, Change, Entry

ROOT = Path(__file__).resolve().parents[4]
PACKAGE = ROOT / "megatron_mixcpt"
GOLDEN = Path(__file__).with_name("engine_signatures.txt")
COMMAND = f"python -m tests.unit.training.engine.test_patches > {GOLDEN.relative_to(ROOT)}"
ENGINES = ("megatron", "torch")


# The installed engine.


def signature(name: str) -> str:
    """Parameters and defaults, without annotations; for what has none, that it is there."""
    try:
        found = pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return " is set in its methods" if _is_set_in_instances(*name.rsplit(".", 1)) else " is missing"
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return " is there"
    text = str(inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _is_set_in_instances(owner: str, attribute: str) -> bool:
    try:
        bases = inspect.getmro(pkgutil.resolve_name(owner))
    except (AttributeError, ImportError):
        return False
    sources = (inspect.getsource(base) for base in bases if base.__module__.startswith(ENGINES))
    return any(f"self.{attribute} = " in source for source in sources)


def of_each_name[T](look_up: Callable[[str], T]) -> dict[str, T]:
    """What ``look_up`` finds under each name of the register, torch's own before any stand-in takes their place."""
    names = list(dict.fromkeys(entry.name for entry in REGISTER))
    found = {name: look_up(name) for name in names if name.startswith("torch")}
    from megatron_mixcpt import cpu_emulation

    cpu_emulation.install()
    found |= {name: look_up(name) for name in names if name not in found}
    return {name: found[name] for name in names}


def print_signatures() -> None:
    """Print what the golden file holds."""
    print("".join(f"{name}{found}\n" for name, found in of_each_name(signature).items()), end="")


def differences(expected: str, found: str) -> list[str]:
    """For each entry with another signature: its name, both signatures, and our modules to look at."""
    before, now = by_name(expected), by_name(found)
    return [
        f"{name} has changed: was '{before.get(name)}', is '{now.get(name)}'; look at "
        + ", ".join(dict.fromkeys(entry.owner for entry in REGISTER if entry.name == name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def by_name(signatures: str) -> dict[str, str]:
    return {re.split(r"[( ]", line)[0]: line for line in signatures.splitlines()}


def test_the_installed_engine_has_these_signatures() -> None:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.unit.training.engine.test_patches"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    changed = differences(GOLDEN.read_text(encoding="utf-8"), found.stdout)
    assert not changed, "\n".join([*changed, f"once they are looked at: {COMMAND}"])


def test_a_changed_signature_is_told_with_the_modules_to_look_at() -> None:
    name = "megatron.training.training.evaluate"
    assert differences(f"{name}(model)\n", f"{name}(model, timeout=None)\n") == [
        f"{name} has changed: was '{name}(model)', is '{name}(model, timeout=None)'; "
        "look at training/engine/console.py, training/pretraining/forgetting.py"
    ]


# The package's source.


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def engine_names(tree: ast.Module) -> dict[str, str]:
    """What a file calls the engine's modules and names -> what they are."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    full = {name: meaning or name for name, meaning in names.items()}
    return {name: meaning for name, meaning in full.items() if meaning.split(".")[0] in ENGINES}


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """The engine's name that an expression such as ``dist.get_rank`` is; None for others."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value, names)):
        return f"{owner}.{node.attr}"
    return None


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(tree: ast.Module) -> set[str]:
    """The engine's private names that a file imports, looks up, overrides or calls in a base class."""
    names = engine_names(tree)
    nodes = list(ast.walk(tree))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    chains = [dotted(node, names) for node in nodes if isinstance(node, ast.Attribute) and id(node) not in inner]
    found = {name for name in [*names.values(), *chains] if name and is_private(name)}
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            for base in filter(None, (dotted(base, names) for base in node.bases)):
                found |= {f"{base}.{attribute}" for attribute in _of_the_base(node)}
    return found


def _of_the_base(node: ast.ClassDef) -> set[str]:
    """Private attributes that a class reads of itself without setting them, or asks ``super()`` for."""
    uses = [use for use in ast.walk(node) if isinstance(use, ast.Attribute) and is_private(use.attr)]
    of_self = [use for use in uses if isinstance(use.value, ast.Name) and use.value.id == "self"]
    of_super = {use.attr for use in uses if ast.unparse(use.value) == "super()"}
    own = {use.attr for use in of_self if isinstance(use.ctx, ast.Store)}
    own |= {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
    return of_super | {use.attr for use in of_self} - own


def assigned_names(tree: ast.Module) -> set[str]:
    """The engine's names that a file assigns to or deletes."""
    names = engine_names(tree)
    found = {
        dotted(node, names)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr", "object.__setattr__"):
            found.add(dotted(node.args[0], names))
    return found - {None}


def test_private_names_of_the_engine_are_in_the_register() -> None:
    registered = {(entry.name, entry.owner) for entry in REGISTER}
    used = {(name, path.relative_to(PACKAGE).as_posix()) for path, tree in sources() for name in private_names(tree)}
    assert len(used) >= 10, "the search finds nothing any more"
    assert not used - registered, "read although private, and not in training/engine/patches.py"
    idle = {(entry.name, entry.owner) for entry in REGISTER if entry.kind == READ} - used
    assert not idle, "in training/engine/patches.py, and not used any more"


def test_nothing_else_assigns_to_the_engine() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): names for path, tree in sources() if (names := assigned_names(tree))}
    assert not found, "offer a Change to training/engine/patches.py instead"


def test_every_change_of_the_register_is_offered_by_its_owner() -> None:
    for entry in REGISTER:
        text = (PACKAGE / entry.owner).read_text(encoding="utf-8")
        wanted = entry.name.rsplit(".", 1)[1] if entry.kind in (READ, OVERRIDDEN) else f'"{entry.name}"'
        assert wanted in text, f"{entry.owner} does not name {entry.name}"


@pytest.mark.parametrize(
    ("source", "private", "assigned"),
    [
        ("from megatron.training import training\ntraining.train = 1", set(), {"megatron.training.training.train"}),
        ("import torch as t\nsetattr(t.cuda, 'x', 1)", set(), {"torch.cuda"}),
        ("from torch.utils import _pytree", {"torch.utils._pytree"}, set()),
        ("import torch\ntorch._dynamo.config.disable", {"torch._dynamo.config.disable"}, set()),
        ("from torch.a import B\nclass C(B):\n def f(self): self._x", {"torch.a.B._x"}, set()),
        ("from torch.a import B\nclass C(B):\n def _f(self): super()._f()", {"torch.a.B._f"}, set()),
        ("from torch.a import B\nclass C(B):\n def f(self): self._x = self.f", set(), set()),
        ("import json\njson._x = 1\ntorch = 1", set(), set()),
    ],
)
def test_what_the_source_does_to_the_engine_is_found(source: str, private: set[str], assigned: set[str]) -> None:
    tree = ast.parse(source)
    assert (private_names(tree), assigned_names(tree)) == (private, assigned)


# Applying changes.


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module ``engine`` with a function, which two modules of ours wrap."""
    module = SimpleNamespace(train=lambda: ["train"])
    monkeypatch.setitem(sys.modules, "engine", module)
    owners = ("inner.py", "outer.py")
    monkeypatch.setattr(patches, "REGISTER", tuple(Entry("engine.train", "wrapped", owner, "") for owner in owners))
    monkeypatch.setattr(patches, "_originals", {})
    monkeypatch.setattr(patches, "_applied", {})
    return module


def wrapping(owner: str, word: str) -> Change:
    return Change("engine.train", f"megatron_mixcpt.{owner}", lambda train: lambda: [word, *train()])


def test_changes_are_ordered_by_the_register_and_made_once(engine: SimpleNamespace) -> None:
    original = engine.train
    patches.change_engine([wrapping("outer", "first run"), wrapping("inner", "checked")])
    assert engine.train() == ["first run", "checked", "train"]
    patches.change_engine([wrapping("outer", "second run")])
    assert engine.train() == ["second run", "checked", "train"]
    patches.restore_engine()
    assert engine.train is original
    patches.change_engine([wrapping("inner", "checked")])
    assert engine.train() == ["checked", "train"]


def test_changes_that_are_not_registered_or_not_possible_are_refused(engine: SimpleNamespace) -> None:
    with pytest.raises(LookupError, match=r"engine\.train has no entry in .*patches\.py for other\.py"):
        patches.change_engine([wrapping("other", "x")])
    del engine.train
    with pytest.raises(LookupError, match=r"no engine\.train, which inner\.py and outer\.py would change"):
        patches.change_engine([wrapping("inner", "x")])


def test_the_table_names_every_entry() -> None:
    table = patches.table()
    assert all(entry.name.rsplit(".", 1)[1] in table and entry.reason in table for entry in REGISTER)
    assert "wrapped 2 of 2" in table and REPLACED in table


if __name__ == "__main__":
    print_signatures()

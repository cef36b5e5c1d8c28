"""A checkpoint that would run code when loaded is refused before; one that another program wrote gives a warning."""

import ast
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedObject
from torch.distributed.checkpoint import save

from megatron_mixcpt.conversion.megatron_for_engine import open_for_engine, supply_missing_extra_states
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError


class Hostile:
    """Pickles as a call of ``os.system``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def checkpoint_with(folder: Path, value: object) -> Path:
    """A checkpoint of a tensor and one object, as if of this project's making; returns its folder."""
    target = folder / "iter_0000001"
    folder.mkdir(exist_ok=True)
    save({"weight": torch.zeros(2), "common_state/shard_0_1": [value]}, checkpoint_id=target, no_dist=True)
    (target / "metadata.json").write_text("{}")
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    (folder / "hf").mkdir()
    (folder / "hf" / "source.json").write_text("{}")
    return folder


def test_objects_that_name_functions_are_refused(tmp_path: Path) -> None:
    open_for_engine(checkpoint_with(tmp_path / "good", {"iteration": 1}))
    hostile = checkpoint_with(tmp_path / "bad", Hostile(tmp_path / "marker"))
    with pytest.raises(
        CheckpointError, match="common_state/shard_0_1: loading it would run code that it names"
    ) as caught:
        open_for_engine(hostile)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="common_state/shard_0_1 cannot be read"):
        MegatronCheckpoint(hostile).arguments()
    assert not (tmp_path / "marker").exists()


def test_an_index_that_names_functions_is_refused(tmp_path: Path) -> None:
    index = checkpoint_with(tmp_path, {}) / "iter_0000001" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    metadata.planner_data = Hostile(tmp_path / "marker")
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"\.metadata names posix.system"):
        open_for_engine(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_of_another_program_gives_a_warning(tmp_path: Path) -> None:
    folder = checkpoint_with(tmp_path, {})
    (folder / "hf" / "source.json").unlink()
    with pytest.warns(UserWarning, match=r"was not written by megatron-mixcpt \(it has no hf/source.json\)"):
        open_for_engine(folder)


PACKAGE = Path(__file__).parents[3] / "megatron_mixcpt"
# What hands a checkpoint to a loader that runs what pickles name, and where; ``pretrain()`` loads what its flags name.
LOADERS = {"dist_checkpointing.load", "load_checkpoint", "dcp.load", "load_common_state_dict", "pretrain"}
UNPICKLERS = {"pickle.load", "pickle.loads", "torch.load", "np.load", "numpy.load"}
ALLOWED_LOADERS = {
    ("inference/engine_model.py", "dist_checkpointing.load"),
    ("training/engine/launch.py", "pretrain"),
}


def loads_in(source: str) -> Iterator[tuple[str, str]]:
    """(function, loader) of each call of a loader or an unpickler that may run code.

    torch's is harmless with ``weights_only=True``, NumPy's unless it has ``allow_pickle=True``.
    """
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            is_safe = options.get("weights_only") == "True" or ("np" in name or "numpy" in name)
            if any(name == loader or name.endswith(f".{loader}") for loader in LOADERS):
                yield function.name, name
            elif name in UNPICKLERS and (not is_safe or options.get("allow_pickle") == "True"):
                yield function.name, name


def calls_of(path: str, function_name: str) -> set[str]:
    """Names of the functions that a function of the package calls."""
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function_name)
    return {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}


def test_nothing_else_hands_a_checkpoint_to_the_engine() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for _, name in loads_in(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED_LOADERS, "open it with open_for_engine() or resumable(), which check its pickles first"


def test_what_is_handed_to_the_engine_was_checked() -> None:
    assert "open_for_engine" in calls_of("inference/engine_model.py", "load_megatron_weights")
    assert "open_for_engine" in calls_of("training/engine/checkpoints.py", "resumable")
    for trainer in ("pretraining", "alignment"):
        texts = [path.read_text(encoding="utf-8") for path in (PACKAGE / "training" / trainer).glob("*.py")]
        assert any("resumable(" in text for text in texts), f"training/{trainer} does not check what --load names"


@pytest.mark.parametrize(
    "call",
    ["dist_checkpointing.load(state, folder)", "checkpointing.load_checkpoint([model], None)", "torch.load(file)"]
    + ["pickle.loads(content)", "np.load(file, allow_pickle=True)", "torch.load(file, weights_only=False)"],
)
def test_a_loader_is_found(call: str) -> None:
    assert list(loads_in(f"def load():\n    {call}")) == [("load", call.partition("(")[0])]


@pytest.mark.parametrize("call", ["torch.load(file, weights_only=True)", "np.load(file)", "json.load(file)"])
def test_a_harmless_loader_is_not(call: str) -> None:
    assert not list(loads_in(f"def load():\n    {call}"))


def test_extra_states_that_a_checkpoint_lacks_are_empty(tmp_path: Path) -> None:
    """Of layers without Transformer Engine the norms have none. A missing object of another kind stays an error."""
    saved, missing, other = (ShardedObject(key, None, (1,), (0,)) for key in ("a._extra_state", "b._extra_state", "c"))
    save({saved.unique_key: [0], "weight": torch.zeros(2)}, checkpoint_id=tmp_path, no_dist=True)
    state = {"model": {"a": saved, "b": missing, "c": other}, "iteration": 1}
    supply_missing_extra_states(state, tmp_path)
    assert state["iteration"] == 1 and state["model"]["a"] is saved and state["model"]["c"] is other
    supplied = state["model"]["b"]
    assert isinstance(supplied, LocalNonpersistentObject) and not supplied.unwrap().numel()

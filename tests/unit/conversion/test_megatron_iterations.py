"""Incomplete checkpoints: found by what is missing or too short, and the last complete one before them is chosen."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.conversion.megatron_iterations import choose_checkpoint, why_incomplete, write_tracker
from megatron_mixcpt.errors import CheckpointError
from tests.unit.conversion import tiny_hf


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint, as conversion writes one."""
    root = tmp_path_factory.mktemp("model")
    convert_from_hf(tiny_hf.save("llama", root / "hf", torch.bfloat16), root / "megatron")
    return root / "megatron"


@pytest.fixture
def saved(release: Path, tmp_path: Path) -> Path:
    """A folder with iterations 10, 20 and 30, all complete; the tracker names the last."""
    for name in ("iter_0000010", "iter_0000020", "iter_0000030"):
        shutil.copytree(release / "release", tmp_path / name)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("30")
    return tmp_path


def data_file(folder: Path) -> Path:
    return next(path for path in sorted(folder.glob("*.distcp")) if path.stat().st_size)


def cut(folder: Path) -> None:
    os.truncate(data_file(folder), data_file(folder).stat().st_size - 1)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensors": (lambda folder: data_file(folder).unlink(), "has 0 of"),
    "cut off": (cut, r"has [\d,]+ of [\d,]+ bytes"),
    "no index": (lambda folder: (folder / ".metadata").unlink(), "no .metadata"),
    "empty index": (lambda folder: (folder / ".metadata").write_bytes(b""), "no .metadata"),
    "half an index": (lambda folder: os.truncate(folder / ".metadata", 100), "cannot be read"),
    "zeros": (lambda folder: (folder / "metadata.json").write_bytes(bytes(64)), "metadata.json cannot be read"),
    "not finished": (lambda folder: (folder / "metadata.json").unlink(), "no metadata.json"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_an_incomplete_iteration_is_passed_over(saved: Path, damage: Callable[[Path], object], reason: str) -> None:
    assert why_incomplete(saved / "iter_0000030") is None
    damage(saved / "iter_0000030")
    choice = choose_checkpoint(saved)
    assert choice.folder == saved / "iter_0000020"
    assert re.search(reason, choice.passed_over), choice.passed_over
    assert "iter_0000030 is incomplete" in choice.passed_over and "continuing from iter_0000020" in choice.passed_over


def test_a_complete_iteration_is_chosen(saved: Path, release: Path) -> None:
    assert choose_checkpoint(saved) == (saved / "iter_0000030", None)
    assert choose_checkpoint(release) == (release / "release", None)


@pytest.mark.parametrize("content", [None, "", "\0\0", "3x"])
def test_without_a_tracker_the_newest_complete_one_is_chosen(saved: Path, content: str | None) -> None:
    tracker = saved / "latest_checkpointed_iteration.txt"
    tracker.unlink() if content is None else tracker.write_text(content)
    cut(saved / "iter_0000030")
    choice = choose_checkpoint(saved)
    assert choice.folder == saved / "iter_0000020" and "names no iteration" in choice.passed_over
    write_tracker(saved, choice.folder)
    assert choose_checkpoint(saved) == (choice.folder, None)


def test_what_an_abandoned_run_left_is_not_chosen(saved: Path) -> None:
    """After going back to 10 and on to 20 the tracker names 20; 30 is of the run that was given up."""
    write_tracker(saved, saved / "iter_0000020")
    cut(saved / "iter_0000020")
    assert choose_checkpoint(saved).folder == saved / "iter_0000010"


def test_nothing_to_continue_from(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert choose_checkpoint(tmp_path / "empty") is None
    for number in (10, 20, 30):
        cut(saved / f"iter_{number:07d}")
    with pytest.raises(CheckpointError, match=r"iter_0000030 is incomplete .*no complete iteration before it"):
        choose_checkpoint(saved)

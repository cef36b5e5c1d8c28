"""Complete or absent: what is flushed and renamed, in which order, and what an error leaves behind."""

import ast
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_mixcpt.jobs import whole_outputs
from megatron_mixcpt.jobs.whole_outputs import aside_of, open_whole, publish, whole_folder, write_whole


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every fsync (with the name of what is flushed) and rename (with the new name), in order, and then carried out."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        done.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_rename)
    return done


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    write_whole(tmp_path / "plan.json", "ä")
    assert (tmp_path / "plan.json").read_bytes() == "ä".encode()
    assert steps == [("fsync", ".plan.json.partial"), ("rename", "plan.json"), ("fsync", tmp_path.name)]


def test_what_is_flushed_is_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own buffer is emptied before the kernel is asked to flush."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    write_whole(tmp_path / "file", b"1234567")
    assert sizes[0] == 7


def test_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    with whole_folder(tmp_path / "out") as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "weights").write_bytes(b"1")
        (aside / "config").write_bytes(b"2")
        assert not (tmp_path / "out").exists() and not steps
    assert (tmp_path / "out" / "inner" / "weights").read_bytes() == b"1"
    names = [name for _, name in steps]
    assert set(names[:-3]) == {"inner", "weights", "config"}
    assert steps[-3:] == [("fsync", ".out.partial"), ("rename", "out"), ("fsync", tmp_path.name)]


def test_a_folder_replaces_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as aside:
        (aside / "file").write_bytes(b"new")
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "empty") as aside:
        (aside / "other").write_bytes(b"newer")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty", "file"]


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path: Path) -> None:
    aside_of(tmp_path / "out").mkdir()
    (aside_of(tmp_path / "out") / "stale").write_bytes(b"")
    aside_of(tmp_path / "file").write_bytes(b"a longer old part")
    with whole_folder(tmp_path / "out") as aside:
        (aside / "fresh").write_bytes(b"")
    write_whole(tmp_path / "file", b"new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fresh"]
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
@pytest.mark.parametrize("existed", [True, False])
def test_an_error_in_the_block_changes_nothing(tmp_path: Path, error: BaseException, existed: bool) -> None:
    if existed:
        (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(type(error)), open_whole(tmp_path / "file") as file:
        file.write(b"half")
        raise error
    with pytest.raises(type(error)), whole_folder(tmp_path / "folder") as aside:
        (aside / "half").write_bytes(b"")
        raise error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"file": b"old"} if existed else {})


def test_a_disk_that_is_full_only_when_flushed_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks are allocated late, writing succeeds and flushing fails."""
    (tmp_path / "file").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_outputs.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "folder"):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_publishing_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    aside_of(tmp_path / "file").write_bytes(b"new")
    publish(aside_of(tmp_path / "file"), tmp_path / "file")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"new"}


# Rooms whose writers all go through jobs/whole_outputs.py, and what may rename nevertheless.
ROOMS = ("conversion", "inference", "verification", "jobs", "evaluation", "report", "selection")
RENAMES = {"jobs/whole_outputs.py"}


def renames_in(source: str) -> Iterator[int]:
    """Lines that rename a file: ``path.rename(...)``, ``path.replace(target)``, ``os.replace(...)``.

    ``text.replace(old, new)`` and ``dataclasses.replace(value, field=...)`` have other arguments.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
            is_of_dataclasses = isinstance(node.func.value, ast.Name) and node.func.value.id == "dataclasses"
            is_path_replace = node.func.attr == "replace" and len(node.args) == 1 and not is_of_dataclasses
            if node.func.attr == "rename" or is_path_replace or (is_of_os and node.func.attr in ("replace", "move")):
                yield node.lineno


def test_nothing_else_renames(repository: Path) -> None:
    package = repository / "megatron_mixcpt"
    files = {path.relative_to(package).as_posix(): path for room in ROOMS for path in (package / room).rglob("*.py")}
    found = [
        f"{name}:{line}"
        for name, path in files.items()
        if name not in RENAMES
        for line in renames_in(path.read_text(encoding="utf-8"))
    ]
    assert len(files) > 20 and not found, f"write through jobs/whole_outputs.py instead: {found}"


def test_a_rename_is_found() -> None:
    files = "a.rename(b)\nos.replace(a, b)\naside.replace(path)\n"
    others = "'x'.replace('a', 'b')\nreplace(rule, rows=1)\ndataclasses.replace(rule)"
    assert list(renames_in(files + others)) == [1, 2, 3]

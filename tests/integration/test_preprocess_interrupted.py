"""Runs that are killed, starved of disk, or meet another run: they resume to the same bytes or say what is wrong."""

import fcntl
import functools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_mixcpt.data.preprocessing.parts.encode import WhoWorks
from megatron_mixcpt.data.preprocessing.run import preprocess
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.preprocessing.tool import build_parser, preprocess_settings
from megatron_mixcpt.data.reading import parts
from megatron_mixcpt.errors import ConfigError, DataError
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

KILLED = 77


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for inputs of a dozen parts: a large file, many small ones, a bad record, a duplicate."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_tokenizer(folder / "tokenizer")
    lines = [
        json.dumps({"text": f"document {number}: " + "a fox, the dog. " * (number % 40)}) for number in range(3000)
    ]
    lines[1234] = '{"text": 5}'
    lines[2345] = lines[5]
    (folder / "large.jsonl").write_text("\n".join(lines))
    (folder / "small").mkdir()
    for number in range(40):
        record = {"prompt": f"question {number}", "response": "the answer " * 100}
        (folder / "small" / f"{number:03}.jsonl").write_text(json.dumps(record))
    flags = ["--cpt", folder / "large.jsonl", "--sft", folder / "small", "--tokenizer", folder / "tokenizer"]
    return [*map(str, flags), "--on-bad-record", "skip"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 100_000)


@functools.cache
def settings_of(*arguments: str) -> PreprocessSettings:
    """Settings from flags, once for all runs: a process of its own reads the tokenizer, which takes seconds."""
    return preprocess_settings(build_parser().parse_args([*arguments, "--output", "not read from the settings"]))


def run(arguments: list[str], output: Path, num_workers: int = 1) -> None:
    preprocess(settings_of(*arguments), output, WhoWorks(num_workers))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_process(function: Callable[..., None], *args: object) -> int:
    """Call ``function`` in a separate process and return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def die_at_rename(number: int, arguments: list[str], output: Path, num_workers: int) -> None:
    """Run until the ``number``-th file is to get its name in the main process, and end there as a kill would."""
    main, count, real = os.getpid(), 0, Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal count
        count += os.getpid() == main
        if count == number:
            os._exit(KILLED)
        return real(self, target)

    Path.rename = Path.replace = rename  # type: ignore[method-assign]
    run(arguments, output, num_workers)


@pytest.fixture(scope="module")
def expected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run of one worker writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", 100_000)
        output = tmp_path_factory.mktemp("expected")
        run(arguments, output)
    assert sorted(contents(output)) == [
        "cpt.bin", "cpt.idx", "mixture.json", "rejects.jsonl.gz", "sft.bin", "sft.idx"
    ]  # fmt: skip
    return contents(output)


def test_outputs_do_not_depend_on_the_number_of_workers(arguments, expected, tmp_path: Path) -> None:
    for num_workers in (2, 3):
        run(arguments, tmp_path / str(num_workers), num_workers)
        assert contents(tmp_path / str(num_workers)) == expected


def test_killed_between_any_two_steps_it_ends_the_same(arguments, expected, tmp_path: Path) -> None:
    number = 1
    while in_process(die_at_rename, number, arguments, tmp_path / str(number), 1) == KILLED:
        output = tmp_path / str(number)
        assert not (output / "mixture.json").exists()
        run(arguments, output)
        assert contents(output) == expected, f"killed before renaming file {number}"
        number += 1
    assert number > 10


def test_killed_again_and_again_it_ends_the_same(arguments, expected, tmp_path: Path) -> None:
    kills = 0
    while in_process(die_at_rename, 7, arguments, tmp_path / "out", 1) == KILLED and kills < 9:
        kills += 1
    assert 2 <= kills < 9
    assert contents(tmp_path / "out") == expected


def test_workers_end_with_their_parent(arguments, expected, tmp_path: Path) -> None:
    assert in_process(die_at_rename, 2, arguments, tmp_path, 2) == KILLED
    # Were a worker still there it would hold the lock, and this be refused.
    run(arguments, tmp_path, 2)
    assert contents(tmp_path) == expected


def test_resumed_run_must_be_the_same(arguments, tmp_path: Path) -> None:
    assert in_process(die_at_rename, 4, arguments, tmp_path, 1) == KILLED
    with pytest.raises(ConfigError, match="made with --keep-duplicates False, now it is True"):
        run([*arguments, "--keep-duplicates"], tmp_path)


def test_changed_input_is_noticed(arguments, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    flags = ["--cpt", str(path), *arguments[-4:]]
    assert in_process(die_at_rename, 3, flags, tmp_path / "out", 1) == KILLED
    path.write_text('{"text": "y"}\n')
    with pytest.raises(ConfigError, match="a.jsonl has changed since"):
        run(flags, tmp_path / "out")


def test_second_run_into_the_same_folder_is_refused(arguments, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another run is writing there"):
        run(arguments, tmp_path)
    os.close(descriptor)
    run(arguments, tmp_path)


def run_with_little_disk(arguments: list[str], output: Path, num_workers: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        run(arguments, output, num_workers)
    except DataError as error:
        assert "cannot be written" in str(error) and "run again to continue" in str(error)
        os._exit(KILLED)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_full_disk_leaves_nothing_half_written(arguments, expected, tmp_path: Path, num_workers: int) -> None:
    assert in_process(run_with_little_disk, arguments, tmp_path, num_workers) == KILLED
    assert [path.name for path in tmp_path.iterdir()] == [".work"]
    run(arguments, tmp_path, num_workers)
    assert contents(tmp_path) == expected


def test_bad_record_is_the_same_whatever_the_number_of_workers(arguments, tmp_path: Path) -> None:
    messages = []
    for num_workers in (1, 3):
        with pytest.raises(DataError) as caught:
            run([*arguments[:-1], "error"], tmp_path / str(num_workers), num_workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert 'large.jsonl:1235: "text" is a number' in messages[0]


def test_killed_by_a_signal_it_resumes(arguments, tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, str(repository / "tools" / "preprocess_mixture.py"), *arguments]
    command += ["--output", str(tmp_path), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (tmp_path / ".work").exists():
            pass
        process.kill()
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert (tmp_path / "mixture.json").exists() and not (tmp_path / ".work").exists()

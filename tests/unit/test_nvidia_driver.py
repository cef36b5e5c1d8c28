"""What says that there is an NVIDIA device, and the line that says why CUDA does not work on it."""

from pathlib import Path

import pytest

from megatron_mixcpt import nvidia_driver

PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U16)\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without devices: ``dev``, ``driver`` and ``bin`` are what the module looks at."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(nvidia_driver, "_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(nvidia_driver, "_DRIVER", tmp_path / "driver")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def nvidia_smi(machine: Path, body: str) -> None:
    """A stand-in on the machine's PATH."""
    program = machine / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def test_a_device_is_seen_by_its_file_or_by_nvidia_smi(machine: Path) -> None:
    assert nvidia_driver.visible_devices() is None
    (machine / "driver").write_text(OPEN)  # also there in a container that was given no device
    (machine / "dev" / "nvidiactl").touch()
    assert nvidia_driver.visible_devices() is None
    nvidia_smi(machine, "echo No devices were found; exit 6")
    assert nvidia_driver.visible_devices() is None
    nvidia_smi(machine, 'echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"')
    assert nvidia_driver.visible_devices() == "nvidia-smi"
    (machine / "dev" / "nvidia0").touch()
    assert nvidia_driver.visible_devices() == str(machine / "dev" / "nvidia0")


def test_the_driver_tells_its_version_or_nvidia_smi_does(machine: Path) -> None:
    assert nvidia_driver.driver_version() is None
    nvidia_smi(machine, "echo 550.54.15; echo 550.54.15")
    assert nvidia_driver.driver_version() == "550.54.15"
    for text, version in ((PROPRIETARY, "535.129.03"), (OPEN, "580.65.06")):
        (machine / "driver").write_text(text)
        assert nvidia_driver.driver_version() == version


@pytest.mark.parametrize("value, wanted", [("", True), ("-1", True), ("NoDevFiles", True), ("0", False), ("3", False)])
def test_hiding_every_device_asks_for_the_cpu(value: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert nvidia_driver.no_device_wanted() is wanted


def test_without_the_variable_nothing_is_hidden(machine: Path) -> None:
    assert not nvidia_driver.no_device_wanted()


def test_an_old_driver_is_named_with_what_torch_needs(machine: Path) -> None:
    (machine / "driver").write_text(PROPRIETARY)
    said = nvidia_driver.why_cuda_fails("2.14.1+cu130", "13.0", "CUDA initialization: too old")
    assert said == (
        "its driver is 535.129.03, and torch 2.14.1+cu130 is built for CUDA 13.0, which needs driver 580 or newer: "
        "update the driver, or install a build of torch for an older CUDA"
    )
    # The nearest that works: then the driver is not what is wrong.
    assert "Error 802" in nvidia_driver.why_cuda_fails("2.11.0+cu128", "12.8", "Error 802: system not yet initialized")


def test_a_build_of_torch_without_cuda_is_named(machine: Path) -> None:
    (machine / "driver").write_text(OPEN)
    said = nvidia_driver.why_cuda_fails("2.14.1+cpu", None, "")
    assert said.startswith("torch 2.14.1+cpu is built without CUDA (its driver is 580.65.06): install a build")


def test_whatever_else_is_wrong_is_told_in_the_words_of_torch(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no driver is loaded" in nvidia_driver.why_cuda_fails("2.14.1+cu130", "13.0", "")
    (machine / "driver").write_text(OPEN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    said = nvidia_driver.why_cuda_fails("2.14.1+cu130", "13.0", "Error 101: invalid device ordinal")
    assert 'torch says "Error 101: invalid device ordinal"; CUDA_VISIBLE_DEVICES is 9: see whether' in said

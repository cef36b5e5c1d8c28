"""What the results were found on: card, driver, versions, commit, date."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "transformers", "megatron-core", "transformer-engine", "apex", "liger-kernel")


def num_gpus() -> int:
    """CUDA devices that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def describe_machine() -> dict:
    """For the summary; unknown values are named as such."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    versions |= {"cuda": torch.version.cuda or "none", "cudnn": str(torch.backends.cudnn.version() or "none")}
    if num_gpus():
        versions["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    return {
        "card": torch.cuda.get_device_name() if num_gpus() else "no GPU",
        "num_gpus": num_gpus(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    """Of the repository; a copy without its history may have it in a file COMMIT."""
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    if commit != "unknown":
        return commit + (" with changes" if changed not in ("", "unknown") else "")
    noted = ROOT / "COMMIT"
    return noted.read_text(encoding="utf-8").strip() if noted.is_file() else "unknown"


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"

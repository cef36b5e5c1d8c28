"""Whether this machine shows NVIDIA devices to the process, and why CUDA does not work although it does.

Without the question, a job on a node whose driver is too old for the installed torch would train on the node's CPUs.
"""

import os
import re
import subprocess
from pathlib import Path

_DEVICES = Path("/dev")
_DRIVER = Path("/proc/driver/nvidia/version")
# The oldest driver that runs a CUDA version's programs (CUDA compatibility, "minimum required driver version").
_NEEDED_DRIVERS = {11: 450, 12: 525, 13: 580}


def no_device_wanted() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every device, by which a user or a job's launcher asks for the CPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")


def visible_devices() -> str | None:
    """What shows that there is a device: its file, or nvidia-smi, which knows those that have none; or None.

    The driver's own file does not count: it is also there in a container that was given no device.
    """
    for path in sorted(_DEVICES.glob("nvidia[0-9]*")):
        return str(path)
    return "nvidia-smi" if _nvidia_smi("--list-gpus").startswith("GPU ") else None


def driver_version() -> str | None:
    """The version of the loaded driver, for instance 535.129.03; None where it cannot be found."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.\d+[.\d]*)\s", _DRIVER.read_text())
    except OSError:
        found = None
    found = found or re.match(r"(\d+\.\d+[.\d]*)\s", _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader"))
    return found[1] if found else None


def _nvidia_smi(*arguments: str) -> str:
    try:
        answer = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def why_cuda_fails(torch_version: str, cuda_version: str | None, cuda_says: str) -> str:
    """The state of the driver and what to do, in one line.

    Args:
        torch_version: of the installed torch.
        cuda_version: that this torch is built for; None: it is built without CUDA.
        cuda_says: torch's own words when it looked for devices; may be empty.
    """
    driver = driver_version()
    state = f"its driver is {driver}" if driver else "no driver is loaded"
    if cuda_version is None:
        return f"torch {torch_version} is built without CUDA ({state}): install a build of torch for CUDA"
    needed = _NEEDED_DRIVERS.get(int(cuda_version.split(".")[0]))
    wants = f"torch {torch_version} is built for CUDA {cuda_version}"
    if needed:
        wants += f", which needs driver {needed} or newer"
    if driver and needed and int(driver.split(".")[0]) < needed:
        return f"{state}, and {wants}: update the driver, or install a build of torch for an older CUDA"
    said = f'; torch says "{cuda_says}"' if cuda_says else ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    selected = f"; CUDA_VISIBLE_DEVICES is {hidden}" if hidden else ""
    return f"{state}, and {wants}{said}{selected}: see whether nvidia-smi lists the device and this process may use it"

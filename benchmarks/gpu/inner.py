"""A function in processes of its own, one or several under torchrun.

    python benchmarks/gpu/inner.py MODULE:FUNCTION ARGUMENTS.json RESULT.json

The first rank writes what the function returns, as JSON.
"""

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mixcpt import cpu_emulation  # noqa: E402

ON_CPU = cpu_emulation.install()

from benchmarks.gpu import device  # noqa: E402 - Megatron is imported after the emulation


def main() -> None:
    """Call the function."""
    name, arguments, result = sys.argv[1:]
    device.on_cpu = ON_CPU
    module, function = name.split(":")
    value = getattr(importlib.import_module(module), function)(**json.loads(Path(arguments).read_text()))
    if os.environ.get("RANK", "0") == "0":
        Path(result).write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    main()

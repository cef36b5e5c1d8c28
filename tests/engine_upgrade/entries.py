"""What the installed engine has under each name of the register of engine changes, as JSON on standard output.

    python -m tests.engine_upgrade.entries

``{"version": ..., "entries": {name: {"signature": ..., "source": ...}}}``, where ``source`` is a digest of the
function's or class's text, or null for what has none, such as a value.
"""

import hashlib
import inspect
import json
import pkgutil
from importlib.metadata import version

from megatron_mixcpt import cpu_emulation
from megatron_mixcpt.training.engine.patches import REGISTER
from tests.unit.training.engine.test_patches import signature


def source_digest(name: str) -> str | None:
    """SHA-256 of the text of what ``name`` is; None where it has none, or is not there."""
    try:
        text = inspect.getsource(pkgutil.resolve_name(name))
    except (AttributeError, ImportError, OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Print the entries; torch's own names are looked up before any stand-in takes their place."""
    names = sorted({entry.name for entry in REGISTER})
    found = {name: (signature(name), source_digest(name)) for name in names if name.startswith("torch")}
    cpu_emulation.install()
    found |= {name: (signature(name), source_digest(name)) for name in names if name not in found}
    entries = {name: {"signature": found[name][0], "source": found[name][1]} for name in names}
    print(json.dumps({"version": version("megatron-core"), "entries": entries}, indent=1))


if __name__ == "__main__":
    main()

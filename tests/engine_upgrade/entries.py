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

from tests.unit.training.engine.test_patches import of_each_name, signature


def source_digest(name: str) -> str | None:
    """SHA-256 of the text of what ``name`` is; None where it has none, or is not there."""
    try:
        text = inspect.getsource(pkgutil.resolve_name(name))
    except (AttributeError, ImportError, OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Print the entries."""
    entries = of_each_name(lambda name: {"signature": signature(name), "source": source_digest(name)})
    print(json.dumps({"version": version("megatron-core"), "entries": entries}, indent=1))


if __name__ == "__main__":
    main()

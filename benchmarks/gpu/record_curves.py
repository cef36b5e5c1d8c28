"""Record on a CPU the curves that the kit compares a GPU with: python benchmarks/gpu/record_curves.py

Writes ``cpu_curves.json``: float32, one rank, the tiny world's digest beside them. To be run again when the trainers'
mathematics or the tiny world change, and then only.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.checks.curves import KEYS, LOCAL, RECORDED, runs  # noqa: E402
from benchmarks.gpu.context import Context  # noqa: E402
from benchmarks.gpu.report import Report  # noqa: E402
from benchmarks.gpu.worlds import digest, tiny_world  # noqa: E402


def main() -> None:
    """Train, and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Report(), Path(folder), "record", tiny=True)
        world = tiny_world(context)
        curves = {}
        for name, (tool, argv) in runs(world).items():
            trained = context.train(tool, [*argv, *LOCAL], name)
            curves[name] = {key: trained[key] for key in KEYS if key in trained}
            print(name, curves[name]["loss"], flush=True)
        content = {"world": digest(world), "curves": curves}
    RECORDED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

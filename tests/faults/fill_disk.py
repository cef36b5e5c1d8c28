"""Let the disk run full while a checkpoint is saved and a model is exported: one line, and nothing finished destroyed.

    sudo .venv/bin/python -m tests.faults.fill_disk

Mounts a small tmpfs (needs root), trains a tiny Llama with a checkpoint at every second iteration into it until it is
full, looks at what the run said and left, makes room, starts the same command again, and compares the weights with an
undisturbed run's, bit for bit. Then it exports into a disk that is too small.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.small_disk import check, resize, small_disk

MIB = 1 << 20


def main() -> None:
    """Fill, look, make room, compare; exits with 1 at the first thing that is not as promised."""
    from tests.faults.interruptions import compare, make_folder  # not at the top: see kill_training.py

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_folder(folder)
        expected = folder / "expected"
        check(train(folder, expected) == 0, f"the undisturbed run failed: {said(folder)}")
        size = sum(path.stat().st_size for path in (expected / "iter_0000002").iterdir())
        with small_disk(folder / "disk", 3 * size + 2 * MIB) as disk:
            fill_while_saving(folder, disk / "save")
            resize(disk, 30 * size)
            check(train(folder, disk / "save") == 0, f"the run did not go on: {said(folder)}")
            compare(disk / "save", expected)
            fill_while_exporting(expected, disk, size // 20)


def train(folder: Path, save: Path) -> int:
    """Run the drill's training to its end; returns the exit code."""
    from tests.faults.interruptions import command
    from tests.faults.launchers import Torchrun

    training = Torchrun(*command(folder, "tp2", save), folder / "log", {})
    training.end([])
    return training.poll()


def said(folder: Path) -> str:
    """The lines with errors of the last training."""
    lines = (folder / "log").read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if line.startswith("error:"))


def fill_while_saving(folder: Path, save: Path) -> None:
    """The run must end with the remedy and leave a whole checkpoint."""
    from megatron_mixcpt.conversion.megatron_iterations import choose_checkpoint

    check(train(folder, save) != 0, "the disk was large enough")
    message = said(folder)
    check("a checkpoint cannot be written to --save" in message, message or "no error: line")
    whole = choose_checkpoint(save)
    check(whole is not None, "no whole checkpoint is left")
    print(f"saving: {message.splitlines()[0]}\n  kept {whole.folder.name}", flush=True)


def fill_while_exporting(checkpoint: Path, disk: Path, left: int) -> None:
    """The export must end with one line, and leave no folder that looks finished."""
    resize(disk, shutil.disk_usage(disk).used + left)
    tool = Path(__file__).parents[2] / "tools" / "convert_to_hf.py"
    argv = [sys.executable, str(tool), "--load", str(checkpoint), "--save", str(disk / "exported")]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    check(result.returncode != 0, "the disk was large enough for the export")
    lines = result.stderr.strip().splitlines()
    check(lines[-1].startswith("error:"), result.stderr)
    check(not (disk / "exported").exists(), "a half-written export looks finished")
    print(f"exporting: {lines[-1]}", flush=True)


if __name__ == "__main__":
    main()

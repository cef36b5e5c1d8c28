"""Kill the preprocessing at random moments and see that it always ends with the same bytes.

    python benchmarks/preprocess/kill_and_resume.py --tokenizer models/SmolLM2-135M --input corpus.jsonl [--kills 50]

Runs once undisturbed, then starts the same again and again, with one to three workers in turn, kills the main process
(SIGKILL) up to five times at random moments, and then lets it come to its end and compares the output with the
undisturbed one's, byte for byte; until ``--kills`` were dealt out.
"""

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_mixture.py"


def main() -> None:
    """Run, kill, compare; exits with 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    command = [sys.executable, str(TOOL), "--cpt", arguments.input, "--tokenizer", arguments.tokenizer]
    kills = runs = 0
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        subprocess.run([*command, "--output", f"{folder}/expected"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        expected = digests(Path(folder) / "expected")
        while kills < arguments.kills:
            output = Path(folder) / "out"
            shutil.rmtree(output, ignore_errors=True)
            survived = 0
            for _ in range(random.randint(1, 5)):
                survived += killed(command, output, 1 + runs % 3, random.uniform(0, seconds))
            killed(command, output, 1 + runs % 3, None)
            kills, runs = kills + survived, runs + 1
            if digests(output) != expected:
                sys.exit(f"after {survived} kills the output differs")
            print(f"{survived} kills, then the same bytes ({kills} of {arguments.kills})", flush=True)
    print(f"{kills} kills in {runs} runs, all ended byte-identical")


def killed(command: list[str], output: Path, num_workers: int, after_seconds: float | None) -> bool:
    """Run the tool and kill it after some seconds (None: never); False where it had come to its end before."""
    command = [*command, "--output", str(output), "--workers", str(num_workers)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(after_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode > 0:
        sys.exit(f"failed: {' '.join(command)}")
    return process.returncode < 0


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a finished output."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


if __name__ == "__main__":
    main()

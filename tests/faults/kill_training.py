"""Interrupt training at random moments, start the same command again, and see that it ends with the same weights.

    python -m tests.faults.kill_training --kills 50 [--case tp2] [--signal SIGKILL] [--launcher torchrun]

Trains a tiny Llama on two ranks once undisturbed. Then, again and again: starts the same training in a folder of its
own, kills a rank, the launcher or everything some iterations on or while a checkpoint is written, starts the same
command, until it comes to its end; and compares the last checkpoint's weights with the undisturbed run's, bit for bit.
SIGTERM and SIGUSR1 ask the training to stop, which it must do with a checkpoint and exit code 75. ``--folder`` keeps
the undisturbed runs for the next call; ``--launcher fork`` is faster (``launchers.py``).
"""

import argparse
import random
import tempfile
from pathlib import Path


def main() -> None:
    """Read the command line and run the drill."""
    # Not at the top: every process that a forked rank starts imports this module, and the engine starts one.
    from tests.faults.interruptions import CASES, LAUNCHERS, Drill, make_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--case", choices=sorted(CASES), default="tp2")
    parser.add_argument("--signal", choices=("SIGKILL", "SIGTERM", "SIGUSR1"), default="SIGKILL")
    parser.add_argument("--launcher", choices=sorted(LAUNCHERS), default="torchrun")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_folder(folder)
        Drill(folder, options).run(options.kills)


if __name__ == "__main__":
    main()

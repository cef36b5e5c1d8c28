"""What a method learns against what it keeps, at several weights of the distillation: the controlled experiment and the
real one.

    python examples/reproduce/frontier.py controlled --output outputs/controlled
    python examples/reproduce/frontier.py real --output outputs/frontier
    python examples/reproduce/frontier.py real --output outputs/one --points lssd-0.8 --seeds 1 --train-iters 16
    python examples/reproduce/frontier.py real --output outputs/frontier --points    # reports what is there

``controlled`` trains a small model on a synthetic language; controlled.py says what it writes. ``real`` trains
SmolLM2-135M on French (real.py); what is done is not done again, and a table and a picture follow after each run:

    OUTPUT/frontier.json     every run's figures, and what is kept at equal gain
    OUTPUT/frontier.png      change on the rest against the gain on the domain
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.reproduce import real  # noqa: E402


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    controlled_command = commands.add_parser("controlled", help="small model, synthetic language")
    real_command = commands.add_parser("real", help="SmolLM2-135M, French")
    for command, seeds in ((controlled_command, range(1, 11)), (real_command, (1, 2))):
        command.add_argument("--output", type=Path, required=True, metavar="DIR")
        command.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="runs of each point")
    real_command.add_argument(
        "--points", nargs="*", choices=real.POINTS, default=list(real.POINTS), help="METHOD-ALPHA; none: report alone"
    )
    real_command.add_argument("--train-iters", type=int, default=32, help="steps of 1,024 tokens")
    args = parser.parse_args()
    if args.command == "controlled":
        from examples.reproduce import controlled  # imports torch and trains in this process

        controlled.run(args.output, args.seeds)
    elif args.points:
        real.run(args.output, args.points, args.seeds, args.train_iters)
    else:
        real.report(args.output)


if __name__ == "__main__":
    main()

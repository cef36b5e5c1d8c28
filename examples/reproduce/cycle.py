"""One domain after another: French, then code, then English articles, with one teacher kept or renewed at each step.

    python examples/reproduce/cycle.py --output outputs/frontier

The first step is that of frontier.py (its runs `none` and `lssd-0.8`, made where they are missing); each later one
trains the model of the step before on the next domain, with the same instructions and preferences in the mixture.

    none       no distillation
    kept       LSSD, alpha 0.8; the teacher is the model before all training
    renewed    LSSD, alpha 0.8; the teacher is the model before this step

    OUTPUT/cycle/mixture-DOMAIN                          of the later domains
    OUTPUT/cycle/{none,kept,renewed}/seed-N/DOMAIN       runs of the later steps; checkpoints are removed at the end
    OUTPUT/evaluations/cycle-{none,kept,renewed}/seed-N/DOMAIN
    OUTPUT/cycle/figures.json                            bits saved by text after each step, in percent
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.reproduce.real import POINTS  # noqa: E402
from examples.reproduce.runs import (  # noqa: E402
    bits_per_byte,
    evaluate,
    make_inputs,
    make_mixture,
    pretrain,
    saved,
    to_hugging_face,
    train,
    write_json,
)

FIRST = {"none": "none", "kept": "lssd-0.8", "renewed": "lssd-0.8"}  # the run that is a row's first step
LATER = ("code", "english")
STEPS = ("french", *LATER)


def main() -> None:
    """Train and evaluate what is not there yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of frontier.py real")
    parser.add_argument("--rows", nargs="*", choices=FIRST, default=list(FIRST), help="none given: report alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--first-iters", type=int, default=32, help="steps of the first domain, of 1,024 tokens")
    parser.add_argument("--train-iters", type=int, default=16, help="steps of each later domain")
    args = parser.parse_args()
    make_inputs(args.output)
    for domain in LATER:
        make_mixture(args.output / "cycle" / f"mixture-{domain}", domain, args.output)
    for seed in args.seeds:
        for row in args.rows:
            go_round(row, seed, args.first_iters, args.train_iters, args.output)
            report(args.output)
    report(args.output)


def report(output: Path) -> None:
    """OUTPUT/cycle/figures.json and the table, of what was evaluated."""
    steps = kept(output)
    write_json(output / "cycle" / "figures.json", steps)
    print(table(steps), flush=True)


def go_round(row: str, seed: int, first_iters: int, train_iters: int, output: Path) -> None:
    """All steps of one row and seed."""
    if evaluated(row, seed, LATER[-1], output).exists():
        return
    first, folder = FIRST[row], output / "cycle" / row / f"seed-{seed}"
    train(first, POINTS[first], seed, first_iters, output)
    run = output / "runs" / first / f"seed-{seed}"
    for domain in LATER:
        model = folder / f"model-before-{domain}"
        to_hugging_face(run, model)
        run = folder / domain
        teacher = {"none": [], "kept": ["--teacher", output / "model"], "renewed": ["--teacher", model]}[row]
        paths = ["--hf-model", model, *teacher, "--mixture", output / "cycle" / f"mixture-{domain}", "--save", run]
        pretrain(run, [*paths, "--train-iters", train_iters, "--seed", seed, *POINTS[first]])
        evaluate(["--load", run], output, evaluated(row, seed, domain, output).relative_to(output / "evaluations"))
    for large in (*folder.glob("model-before-*"), *folder.glob("*/iter_*")):
        shutil.rmtree(large)


def evaluated(row: str, seed: int, domain: str, output: Path) -> Path:
    """The folder of the evaluation after the step ``domain``."""
    if domain == STEPS[0]:
        return output / "evaluations" / FIRST[row] / f"seed-{seed}"
    return output / "evaluations" / f"cycle-{row}" / f"seed-{seed}" / domain


def kept(output: Path) -> list[dict[str, Any]]:
    """Bits saved by text, in percent of the model before all training, after each step that was evaluated."""
    found, base = [], bits_per_byte("base", output)
    for row in FIRST:
        for seeds in sorted((output / "evaluations" / f"cycle-{row}").glob("seed-*")):
            seed = int(seeds.name.removeprefix("seed-"))
            for step in STEPS:
                folder = evaluated(row, seed, step, output)
                if (folder / "results.json").exists():
                    name = folder.relative_to(output / "evaluations").as_posix()
                    found.append(
                        {"row": row, "seed": seed, "after": step, "saved": saved(base, bits_per_byte(name, output))}
                    )
    return found


def table(steps: list[dict[str, Any]]) -> str:
    """Markdown: one line for each row, seed and step."""
    texts = list(steps[0]["saved"]) if steps else []
    lines = [f"| | seed | after | {' | '.join(texts)} | all |", "|---" * (len(texts) + 4) + "|"]
    for step in steps:
        values = list(step["saved"].values())
        numbers = " | ".join(f"{value:.1f}" for value in (*values, sum(values) / len(values)))
        lines.append(f"| `{step['row']}` | {step['seed']} | {step['after']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""The second stage on the first's models: four ways of selecting samples, and the paper's "CSD" beside them.

    python examples/reproduce/second_stage.py --output outputs/reproduce --sft sft.jsonl --dpo dpo.jsonl

After first_stage.py. The Mix-CPT model of one seed scores a pool of samples (FAS, Eq. 8 and 9); of the pool each
strategy selects K instructions and K preferences, and the model is trained on them, SFT then DPO. ``csd`` is continual
pre-training on documents alone, then SFT and DPO; its K samples are drawn at random, so that all rows see as many. The
chat format is Zephyr's, which the model does not know. Measured are samples held out of the pool: the loss of the
instructions' responses, how often the preferred answer is the more probable one per token, and the first stage's texts.

    OUTPUT/alignment/samples/{pool,heldout}.{sft,dpo}.jsonl, OUTPUT/alignment/scores.jsonl
    OUTPUT/alignment/ROW/{sft,dpo}       checkpoints; ROW is high, low, half, random, csd
    OUTPUT/alignment/ROW/heldout.jsonl   scores of the held-out samples; of the models before in before-{mixcpt,cpt}
    OUTPUT/evaluations/aligned-ROW       bits per byte of the texts
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.reproduce.first_stage import dtype, evaluate, once, precision  # noqa: E402

ROWS = ("high", "low", "half", "random", "csd")
TEMPLATE = ["--chat-template", "zephyr"]
TRAINING = [
    *("--seq-length", "1024", "--global-batch-size", "8", "--epochs", "2", "--clip-grad", "1.0", "--num-workers", "0"),
    *("--no-save-optim", "--save-interval", "100000", "--log-interval", "1"),
]
LEARNING = {"sft": ["--lr", "2e-5"], "dpo": ["--lr", "2e-6", "--beta", "0.1"]}


def main() -> None:
    """Score, select, align, measure; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of first_stage.py")
    parser.add_argument("--sft", type=Path, default="examples/data/sft.jsonl", metavar="FILE", help="instructions")
    parser.add_argument("--dpo", type=Path, default="examples/data/dpo.jsonl", metavar="FILE", help="preferences")
    parser.add_argument("--pool", type=int, default=150, help="most samples of each kind to select from")
    parser.add_argument("--top-k", type=int, default=32, help="samples of each kind to align on")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=1, help="of the first stage's models")
    args = parser.parse_args()
    folder = args.output / "alignment"
    split(args.sft, folder / "samples", "sft", args.pool)
    split(args.dpo, folder / "samples", "dpo", args.pool)
    models = {name: args.output / "runs" / name / f"seed-{args.seed}" for name in ("mixcpt", "cpt")}
    score(models["mixcpt"], folder / "samples", "pool", folder / "scores.jsonl", TEMPLATE)
    for name, model in models.items():
        score(model, folder / "samples", "heldout", folder / f"before-{name}" / "heldout.jsonl", TEMPLATE)
    for row in args.rows:
        align(row, models["cpt" if row == "csd" else "mixcpt"], args.top_k, folder)
        evaluate(["--load", folder / row / "dpo"], args.output, f"aligned-{row}")
    print(table(folder))


def split(source: Path, folder: Path, kind: str, pool: int) -> None:
    """Every fourth record is held out, at most a third of ``pool``; the first ``pool`` of the others are the pool."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"heldout.{kind}.jsonl").write_text("".join(lines[3::4][: pool // 3]), encoding="utf-8")
    rest = [line for index, line in enumerate(lines) if index % 4 != 3]
    (folder / f"pool.{kind}.jsonl").write_text("".join(rest[:pool]), encoding="utf-8")


def score(model: Path, samples: Path, part: str, output: Path, template: list[str]) -> None:
    """Scores of the instructions and preferences of ``part``; a model aligned before knows its template."""
    given = [f"--{kind}={samples / f'{part}.{kind}.jsonl'}" for kind in ("sft", "dpo")]
    once(
        output, ["tools/score_alignment.py", "--load", model, *given, *template, "--dtype", dtype(), "--output", output]
    )


def align(row: str, model: Path, top_k: int, folder: Path) -> None:
    """Select, train by SFT and then by DPO, score the held-out samples."""
    strategy = "random" if row == "csd" else row
    before = model
    for kind in ("sft", "dpo"):
        selected, after = folder / row / f"{kind}.jsonl", folder / row / kind
        flags = ["--kind", kind, "--strategy", strategy, "--top-k", top_k, "--output", selected]
        once(selected, ["tools/select_alignment.py", "--scores", folder / "scores.jsonl", *flags])
        paths = ["--load", before, f"--{kind}", selected, "--save", after]
        command = [f"tools/train_{kind}.py", *paths, *TEMPLATE, *TRAINING, *LEARNING[kind], *precision()]
        once(after / "measured.json", command, log=folder / row / f"{kind}.log")
        before = after
    score(before, folder / "samples", "heldout", folder / row / "heldout.jsonl", [])


def table(folder: Path) -> str:
    """One line for each model that was measured: loss of held-out responses, and how often the preferred answer is the
    more probable."""
    lines = [f"{'model':<16}{'response loss':>14}{'preferred':>11}"]
    for row in ("before-mixcpt", "before-cpt", *ROWS):
        if not (folder / row / "heldout.jsonl").exists():
            continue
        scores = [json.loads(line) for line in (folder / row / "heldout.jsonl").open(encoding="utf-8")]
        loss = statistics.mean(each["loss_given_query"] for each in scores if each["kind"] == "sft")
        preferred = statistics.mean(each["fas"] < 1 for each in scores if each["kind"] == "dpo")
        lines.append(f"{row:<16}{loss:>14.3f}{preferred:>11.0%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""The second stage on a model of the first: five ways of selecting samples, and the paper's "CSD" beside them.

    python examples/reproduce/second_stage.py --output outputs/frontier --model lssd-0.8 --sft sft.jsonl --seeds 1 2 3

After frontier.py or first_stage.py, whose run ``--model`` scores samples (FAS, Eq. 8 and 9). Each seed has a pool of
its own, disjoint from the others; of it, each strategy selects K samples, and the model is trained on them in an order
of that seed. The model itself is the same for all seeds. With ``--dpo``, preferences are selected likewise, and DPO
follows SFT. ``csd`` is continual pre-training on documents alone, with K random samples. The chat format is Zephyr's,
which the model does not know. Measured is the loss of the responses of instructions held out of every pool and, with
``--dpo``, how often the preferred answer is the more probable one per token.

    OUTPUT/alignment/samples/{pool,heldout}.{sft,dpo}.jsonl, OUTPUT/alignment/scores.jsonl
    OUTPUT/alignment/before-MODEL/heldout.jsonl     scores of the held-out samples before alignment
    OUTPUT/alignment/seed-N/scores.jsonl            those of the pool of this seed
    OUTPUT/alignment/seed-N/ROW/heldout.jsonl       after alignment; the checkpoint is removed then
    OUTPUT/alignment/figures.json                   the table's figures
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.reproduce.losses_table import compared, table  # noqa: E402
from examples.reproduce.runs import dtype, once, precision, write_json  # noqa: E402

ROWS = ("high", "low", "half", "random", "low-perplexity", "csd")
TEMPLATE = ["--chat-template", "zephyr"]
TRAINING = [
    *("--seq-length", "1024", "--global-batch-size", "8", "--epochs", "2", "--clip-grad", "1.0", "--num-workers", "0"),
    *("--no-save-optim", "--save-interval", "100000", "--log-interval", "1"),
]
LEARNING = {"sft": ["--lr", "2e-5"], "dpo": ["--lr", "2e-6", "--beta", "0.1"]}
SHUFFLE_SEED = 2407


def main() -> None:
    """Score, select, align, measure; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of the first stage")
    parser.add_argument("--model", default="mixcpt", metavar="RUN", help="run of the first stage to align")
    parser.add_argument("--model-seed", type=int, default=1, help="seed of that run")
    parser.add_argument("--sft", type=Path, default="examples/data/sft.jsonl", metavar="FILE", help="instructions")
    parser.add_argument("--dpo", type=Path, metavar="FILE", help="preferences (default: SFT alone)")
    parser.add_argument("--max-bytes", type=int, default=600, help="leave out records whose line is longer")
    parser.add_argument("--heldout", type=int, default=100, help="samples of each kind held out of all pools")
    parser.add_argument("--pool", type=int, default=74, help="samples of each kind that a seed selects from")
    parser.add_argument("--top-k", type=int, default=24, help="samples of each kind to align on")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS[:-1]), help="none: report alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of pools and orders, from 1")
    args = parser.parse_args()
    folder = args.output / "alignment"
    sources = {"sft": args.sft} | ({"dpo": args.dpo} if args.dpo else {})
    for kind, source in sources.items():
        lines = [line for line in source.open(encoding="utf-8") if len(line.encode()) <= args.max_bytes]
        split(lines, folder / "samples", kind, args.heldout, args.pool * max(args.seeds))
    models = {name: args.output / "runs" / name / f"seed-{args.model_seed}" for name in (args.model, "cpt")}
    score(models[args.model], folder / "samples", "pool", list(sources), folder / "scores.jsonl", TEMPLATE)
    for name in (args.model, *(["cpt"] if "csd" in args.rows else [])):
        heldout = folder / f"before-{name}" / "heldout.jsonl"
        score(models[name], folder / "samples", "heldout", list(sources), heldout, TEMPLATE)
    for seed in args.seeds:
        own_pool(folder, list(sources), seed, args.pool)
        for row in args.rows:
            align(row, models["cpt" if row == "csd" else args.model], args.top_k, folder, list(sources), seed)
            report(folder, args.model)
    report(folder, args.model)


def split(lines: list[str], folder: Path, kind: str, num_heldout: int, num_pool: int) -> None:
    """Held-out samples and all pools, in an order that is always the same.

    Exits with a message where there are too few samples."""
    if len(lines) < num_heldout + num_pool:
        sys.exit(
            f"error: --{kind} has {len(lines)} records within --max-bytes, {num_heldout} held out and {num_pool} in "
            "pools were asked for; lower --heldout, --pool or the number of --seeds"
        )
    random.Random(SHUFFLE_SEED).shuffle(lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"heldout.{kind}.jsonl").write_text("".join(lines[:num_heldout]), encoding="utf-8")
    pool = lines[num_heldout : num_heldout + num_pool]
    (folder / f"pool.{kind}.jsonl").write_text("".join(pool), encoding="utf-8")


def own_pool(folder: Path, kinds: list[str], seed: int, size: int) -> None:
    """The scores of the pool of one seed: its ``size`` samples of each kind. Exits where none are left for it."""
    lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    chosen = []
    for kind in kinds:
        of_kind = [line for line in lines if json.loads(line)["kind"] == kind]
        own = of_kind[(seed - 1) * size : seed * size]
        if not own:
            sys.exit(f"error: {folder}/scores.jsonl has no {kind} samples for seed {seed}; remove it to score more")
        chosen += own
    (folder / f"seed-{seed}").mkdir(exist_ok=True)
    (folder / f"seed-{seed}" / "scores.jsonl").write_text("".join(chosen), encoding="utf-8")


def score(model: Path, samples: Path, part: str, kinds: list[str], output: Path, template: list[str]) -> None:
    """Scores of the samples of ``part``; a model aligned before knows its template."""
    given = [f"--{kind}={samples / f'{part}.{kind}.jsonl'}" for kind in kinds]
    flags = [*given, *template, "--dtype", dtype(), "--output", output]
    once(output, ["tools/score_alignment.py", "--load", model, *flags])


def align(row: str, model: Path, top_k: int, folder: Path, kinds: list[str], seed: int) -> None:
    """Select and train, by SFT and then by DPO where it is among ``kinds``, and score the held-out samples."""
    own = folder / f"seed-{seed}"
    if (own / row / "heldout.jsonl").exists():
        return
    strategy = "random" if row == "csd" else row
    before = model
    for kind in kinds:
        selected, after = own / row / f"{kind}.jsonl", own / row / kind
        flags = ["--kind", kind, "--strategy", strategy, "--top-k", top_k, "--seed", seed, "--output", selected]
        once(selected, ["tools/select_alignment.py", "--scores", own / "scores.jsonl", *flags])
        paths = ["--load", before, f"--{kind}", selected, "--save", after, "--seed", seed]
        command = [f"tools/train_{kind}.py", *paths, *TEMPLATE, *TRAINING, *LEARNING[kind], *precision()]
        once(after / "measured.json", command, log=own / row / f"{kind}.log")
        before = after
    score(before, folder / "samples", "heldout", kinds, own / row / "heldout.jsonl", [])
    for kind in kinds:
        for checkpoint in (own / row / kind).glob("iter_*"):
            shutil.rmtree(checkpoint)


def report(folder: Path, model: str) -> None:
    """OUTPUT/alignment/figures.json and the tables, of what was measured: over all samples, and without the shortest
    responses, whose loss per token falls most and would otherwise decide the mean."""
    found = {f"over {tokens} tokens": compared(folder, model, tokens) for tokens in (0, 10)}
    write_json(folder / "figures.json", found)
    for name, figures in found.items():
        print(f"\nResponses {name}.", table(figures), sep="\n", flush=True)


if __name__ == "__main__":
    main()

"""The first stage of Mix-CPT beside what it is compared with, each with several seeds; what is done is not done again.

    bash tools/setup_env.sh quickstart && export PATH="$PWD/.venv/bin:$PATH"
    python examples/reproduce/first_stage.py --output outputs/reproduce

SmolLM2-135M-Instruct learns from French encyclopedia articles, the weakest of the measured texts together with Spanish
(docs/evidence/results.md). Every run has the same number of tokens, steps and learning rates, chosen before the first
run and changed for none; seeds order the data. Seeds are the outer loop, so that a run cut short has complete seeds.

    OUTPUT/model, OUTPUT/texts, OUTPUT/mixture     inputs, made first
    OUTPUT/runs/METHOD/seed-N                      checkpoint, TensorBoard's curves, training.log, seconds
    OUTPUT/evaluations/METHOD/seed-N               results.json of tools/evaluate.py, after training
    OUTPUT/evaluations/base                        the same of the model before
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The rows of the paper's Tables 2 and 3 and of its Figure 6, as flags of the trainer.
MIXTURE = ["--mixture-weights", "cpt=0.7,sft=0.2,dpo=0.1"]
METHODS = {
    "cpt": ["--mixture-weights", "cpt=1", "--distillation", "none"],
    "mixcpt-without-kd": [*MIXTURE, "--distillation", "none"],
    "mixcpt": MIXTURE,
    "kd": [*MIXTURE, "--distillation", "kd"],
    "l2": [*MIXTURE, "--distillation", "l2"],
    "half": [*MIXTURE, "--distillation-fraction", "0.5"],
    "alpha-0.5": [*MIXTURE, "--alpha", "0.5"],
    "alpha-0.95": [*MIXTURE, "--alpha", "0.95"],
}
TRAINING = [
    *("--seq-length", "512", "--micro-batch-size", "1", "--global-batch-size", "2"),
    *("--lr", "3e-4", "--min-lr", "3e-5", "--lr-decay-style", "cosine", "--lr-warmup-fraction", "0.1"),
    *("--clip-grad", "1.0", "--weight-decay", "0.1", "--log-interval", "1", "--num-workers", "0"),
    *("--no-save-optim", "--save-interval", "100000"),
]
HELDOUT = {"French": "french", "English": "english", "Spanish": "spanish", "code": "code"}


def main() -> None:
    """Make the inputs, then train and evaluate what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--train-iters", type=int, default=16, help="steps of 1,024 tokens")
    args = parser.parse_args()
    make_inputs(args.output)
    evaluate(["--hf-model", args.output / "model"], args.output, "base")
    for seed in args.seeds:
        for method in args.methods:
            train(method, seed, args.train_iters, args.output)
            evaluate(["--load", args.output / "runs" / method / f"seed-{seed}"], args.output, f"{method}/seed-{seed}")


def make_inputs(output: Path) -> None:
    """The model, the texts and the mixture."""
    model, texts, mixture = output / "model", output / "texts", output / "mixture"
    once(model, ["examples/quickstart/fetch_model.py", "--save", model])
    once(texts, ["examples/reproduce/texts.py", "--output", texts])
    sources = [
        *("--cpt", texts / "train" / "french.jsonl", "--sft", "examples/data/sft.jsonl"),
        *("--dpo", "examples/data/dpo.jsonl"),
    ]
    once(mixture, ["tools/preprocess_mixture.py", "--tokenizer", model, "--output", mixture, *sources])


def train(method: str, seed: int, train_iters: int, output: Path) -> None:
    """One run of the trainer, on all cores."""
    folder = output / "runs" / method / f"seed-{seed}"
    paths = ["--hf-model", output / "model", "--mixture", output / "mixture", "--save", folder]
    flags = [*TRAINING, *precision(), "--train-iters", train_iters, "--seed", seed, *METHODS[method]]
    once(folder / "seconds", ["tools/pretrain_mixcpt.py", *paths, *flags], log=folder / "training.log")


def evaluate(model: Sequence[object], output: Path, name: str) -> None:
    """Bits per byte of the held-out texts."""
    texts = [f"{label}={output / 'texts' / 'heldout' / file}.jsonl" for label, file in HELDOUT.items()]
    texts.append("English prose=examples/data/general_english.jsonl")
    flags = ["--sequence-length", 512, "--dtype", dtype()]
    folder = output / "evaluations" / name
    once(folder, ["tools/evaluate.py", *model, "--perplexity", *texts, *flags, "--output", folder])


def dtype() -> str:
    """bfloat16 where this CPU multiplies in it: elsewhere it is emulated, slower than float32."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def precision() -> list[str]:
    """The trainers' flag for :func:`dtype`."""
    return ["--bf16"] if dtype() == "bfloat16" else []


def once(output: Path, command: Sequence[object], log: Path | None = None) -> None:
    """Run a Python program of this repository unless its output is there. With ``log``, what it prints goes there and
    ``output`` gets the seconds that it took; without, the program makes ``output`` itself."""
    if output.exists():
        return
    print(f"{time.strftime('%H:%M:%S')} {' '.join(map(str, command))}", flush=True)
    environment = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "HF_HUB_OFFLINE": "1", **os.environ}
    started = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(log or os.devnull, "w", encoding="utf-8") as lines:
        streams = {"stdout": lines, "stderr": subprocess.STDOUT} if log else {}
        words = [sys.executable, *map(str, command)]
        code = subprocess.run(words, cwd=ROOT, env=environment, check=False, **streams).returncode
    if code:
        sys.exit(f"error: {command[0]} ended with code {code}" + (f"; see {log}" if log else " (its message is above)"))
    if log is not None:
        output.write_text(f"{time.monotonic() - started:.0f}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The first stage of Mix-CPT beside what it is compared with, each with several seeds; what is done is not done again.

    bash tools/setup_env.sh quickstart && export PATH="$PWD/.venv/bin:$PATH"
    python examples/reproduce/first_stage.py --output outputs/reproduce

SmolLM2-135M-Instruct learns from French encyclopedia articles, the weakest of the measured texts together with Spanish
(docs/evidence/results.md). Every run has the same number of tokens and steps, and the same learning rates; LoRA has
its own, chosen by rank on other text. All were chosen before the first run and changed for none. Seeds order the data.
They are the outer loop, so that a run cut short has complete seeds.

    OUTPUT/model, OUTPUT/texts, OUTPUT/mixture     inputs, made first
    OUTPUT/runs/METHOD/seed-N                      checkpoint, TensorBoard's curves, training.log, measured.json
    OUTPUT/merged/METHOD/seed-N                    LoRA: base and adapters merged, in Hugging Face format
    OUTPUT/evaluations/METHOD/seed-N               results.json of tools/evaluate.py, after training
    OUTPUT/evaluations/base                        the same of the model before
    OUTPUT/figures.json                            all of it that docs/evidence/results.md reports, by method and seed
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# The rows of the paper's Tables 2 and 3 and of its Figure 6, as flags of the trainer; then adapters in their place.
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
    "lora-8": [*MIXTURE, "--lora-rank", "8", "--lr", "3e-3", "--min-lr", "3e-4"],
    "lora-64": [*MIXTURE, "--lora-rank", "64", "--lora-alpha", "128", "--lr", "1e-3", "--min-lr", "1e-4"],
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
            evaluate(trained(method, seed, args.output), args.output, f"{method}/seed-{seed}")
    names = ["base", *(f"{method}/seed-{seed}" for method in args.methods for seed in args.seeds)]
    text = json.dumps({name: figures(name, args.output) for name in names}, indent=1)
    (args.output / "figures.json").write_text(text + "\n", encoding="utf-8")


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
    once(folder / "measured.json", ["tools/pretrain_mixcpt.py", *paths, *flags], log=folder / "training.log")


def trained(method: str, seed: int, output: Path) -> list[object]:
    """What a run learned, as flags that open it. Adapters are merged with the model first."""
    run = output / "runs" / method / f"seed-{seed}"
    if "--lora-rank" not in METHODS[method]:
        return ["--load", run]
    merged = output / "merged" / method / f"seed-{seed}"
    flags = ["--hf-reference", output / "model", "--dtype", dtype()]
    once(merged, ["tools/convert_to_hf.py", "--load", run, "--save", merged, *flags])
    return ["--hf-model", merged]


def evaluate(model: Sequence[object], output: Path, name: str) -> None:
    """Bits per byte of the held-out texts."""
    texts = [f"{label}={output / 'texts' / 'heldout' / file}.jsonl" for label, file in HELDOUT.items()]
    texts.append("English prose=examples/data/general_english.jsonl")
    flags = ["--sequence-length", 512, "--dtype", dtype()]
    folder = output / "evaluations" / name
    once(folder, ["tools/evaluate.py", *model, "--perplexity", *texts, *flags, "--output", folder])


def figures(name: str, output: Path) -> dict[str, Any]:
    """Bits per byte by text and, of a run, what it took (:func:`run_measured`) and the median of its steps' seconds."""
    results = json.loads((output / "evaluations" / name / "results.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "bits_per_byte": {text: round(each["bits_per_byte"], 4) for text, each in results["perplexity"].items()}
    }
    run = output / "runs" / name
    if not run.exists():
        return found
    rates = re.findall(r"tokens per second: ([\d.]+)", (run / "training.log").read_text(encoding="utf-8"))
    seconds = statistics.median(1024 / float(rate) for rate in rates)
    measured = json.loads((run / "measured.json").read_text(encoding="utf-8"))
    return found | {"steps": len(rates), "median_step_s": round(seconds, 2)} | measured


def dtype() -> str:
    """bfloat16 where this CPU multiplies in it: elsewhere it is emulated, slower than float32."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def precision() -> list[str]:
    """The trainers' flag for :func:`dtype`."""
    return ["--bf16"] if dtype() == "bfloat16" else []


def once(output: Path, command: Sequence[object], log: Path | None = None) -> None:
    """Run a Python program of this repository unless its output is there. With ``log``, what it prints goes there and
    ``output`` gets what it took (:func:`run_measured`); without, the program makes ``output`` itself."""
    if output.exists():
        return
    print(f"{time.strftime('%H:%M:%S')} {' '.join(map(str, command))}", flush=True)
    environment = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "HF_HUB_OFFLINE": "1", **os.environ}
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(log or os.devnull, "w", encoding="utf-8") as lines:
        streams = {"stdout": lines, "stderr": subprocess.STDOUT} if log else {}
        words = [sys.executable, *map(str, command)]
        code, measured = run_measured(words, cwd=ROOT, env=environment, **streams)
    if code:
        sys.exit(f"error: {command[0]} ended with code {code}" + (f"; see {log}" if log else " (its message is above)"))
    if log is not None:
        output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def run_measured(command: list[str], **settings: Any) -> tuple[int, dict[str, float]]:
    """Run ``command`` with the settings of :class:`subprocess.Popen`. Returns its exit code and what the kernel counted
    for the process: seconds on the clock, seconds of CPU time (user and system, all threads) and the peak of its
    resident memory in MB (1e6 bytes)."""
    started = time.monotonic()
    process = subprocess.Popen(command, **settings)
    _, status, usage = os.wait4(process.pid, 0)
    measured = {
        "wall_s": round(time.monotonic() - started, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_resident_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
    }
    return os.waitstatus_to_exitcode(status), measured


if __name__ == "__main__":
    main()

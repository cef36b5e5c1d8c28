"""What the experiments with SmolLM2-135M share: inputs, one run of the trainer, its evaluation and its figures. What is
there is not made again.

    OUTPUT/model, OUTPUT/texts, OUTPUT/mixture     inputs, made first
    OUTPUT/runs/NAME/seed-N                        checkpoint, TensorBoard's curves, training.log, measured.json
    OUTPUT/merged/NAME/seed-N                      LoRA: base and adapters merged, in Hugging Face format
    OUTPUT/evaluations/NAME/seed-N                 results.json of tools/evaluate.py, after training
    OUTPUT/evaluations/base                        the same of the model before
"""

import json
import math
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

MIXTURE = ["--mixture-weights", "cpt=0.7,sft=0.2,dpo=0.1"]
LORA_8 = [*MIXTURE, "--lora-rank", "8", "--lr", "3e-3", "--min-lr", "3e-4"]
TRAINING = [
    *("--seq-length", "512", "--micro-batch-size", "1", "--global-batch-size", "2"),
    *("--lr", "3e-4", "--min-lr", "3e-5", "--lr-decay-style", "cosine", "--lr-warmup-fraction", "0.1"),
    *("--clip-grad", "1.0", "--weight-decay", "0.1", "--log-interval", "1", "--num-workers", "0"),
    *("--no-save-optim", "--save-interval", "100000"),
]
HELDOUT = {"French": "french", "English": "english", "Spanish": "spanish", "code": "code"}
DOMAIN = "French"


def make_inputs(output: Path) -> None:
    """The model, the texts, the mixture of French, and the evaluation of the model before training."""
    once(output / "model", ["examples/quickstart/fetch_model.py", "--save", output / "model"])
    once(output / "texts", ["examples/reproduce/texts.py", "--output", output / "texts"])
    make_mixture(output / "mixture", "french", output)
    evaluate(["--hf-model", output / "model"], output, "base")


def make_mixture(mixture: Path, domain: str, output: Path) -> None:
    """The documents of a domain, with the instructions and preferences of ``examples/data``."""
    sources = [
        *("--cpt", output / "texts" / "train" / f"{domain}.jsonl", "--sft", "examples/data/sft.jsonl"),
        *("--dpo", "examples/data/dpo.jsonl"),
    ]
    once(mixture, ["tools/preprocess_mixture.py", "--tokenizer", output / "model", "--output", mixture, *sources])


def train(name: str, flags: Sequence[object], seed: int, train_iters: int, output: Path) -> None:
    """One run of the trainer from the model on French, on all cores, and its evaluation."""
    folder = output / "runs" / name / f"seed-{seed}"
    paths = ["--hf-model", output / "model", "--mixture", output / "mixture", "--save", folder]
    pretrain(folder, [*paths, "--train-iters", train_iters, "--seed", seed, *flags])
    evaluate(trained(name, flags, seed, output), output, f"{name}/seed-{seed}")


def pretrain(folder: Path, flags: Sequence[object]) -> None:
    """Run the trainer with the experiment's settings and ``flags``, the later of which hold."""
    command = ["tools/pretrain_mixcpt.py", *TRAINING, *precision(), *flags]
    once(folder / "measured.json", command, log=folder / "training.log")


def trained(name: str, flags: Sequence[object], seed: int, output: Path) -> list[object]:
    """What a run learned, as flags that open it. Adapters are merged with the model first."""
    run = output / "runs" / name / f"seed-{seed}"
    if "--lora-rank" not in flags:
        return ["--load", run]
    merged = output / "merged" / name / f"seed-{seed}"
    to_hugging_face(run, merged, "--hf-reference", output / "model")
    return ["--hf-model", merged]


def to_hugging_face(run: Path, folder: Path, *flags: object) -> None:
    """A run's model in Hugging Face format."""
    once(folder, ["tools/convert_to_hf.py", "--load", run, "--save", folder, "--dtype", dtype(), *flags])


def evaluate(model: Sequence[object], output: Path, name: str | Path) -> None:
    """Bits per byte of the held-out texts."""
    texts = [f"{label}={output / 'texts' / 'heldout' / file}.jsonl" for label, file in HELDOUT.items()]
    texts.append("English prose=examples/data/general_english.jsonl")
    flags = ["--sequence-length", 512, "--dtype", dtype()]
    folder = output / "evaluations" / name
    once(folder, ["tools/evaluate.py", *model, "--perplexity", *texts, *flags, "--output", folder])


def bits_per_byte(name: str, output: Path) -> dict[str, float]:
    """Bits per byte by text, of an evaluation."""
    results = json.loads((output / "evaluations" / name / "results.json").read_text(encoding="utf-8"))
    return {text: round(each["bits_per_byte"], 4) for text, each in results["perplexity"].items()}


def saved(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Bits saved by text, in percent of the model before; negative where a text costs more."""
    return {text: 100 * (1 - after[text] / bits) for text, bits in before.items()}


def figures(name: str, output: Path) -> dict[str, Any]:
    """Bits per byte by text and, of a run, what it took (:func:`run_measured`) and the median of its steps' seconds."""
    found: dict[str, Any] = {"bits_per_byte": bits_per_byte(name, output)}
    run = output / "runs" / name
    if not run.exists():
        return found
    rates = re.findall(r"tokens per second: ([\d.]+)", (run / "training.log").read_text(encoding="utf-8"))
    seconds = statistics.median(1024 / float(rate) for rate in rates)
    measured = json.loads((run / "measured.json").read_text(encoding="utf-8"))
    return found | {"steps": len(rates), "median_step_s": round(seconds, 2)} | measured


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON; numbers to four places, and null for what is not a number."""
    path.write_text(json.dumps(_rounded(value), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return (round(value, 4) if math.isfinite(value) else None) if isinstance(value, float) else value


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
        write_json(output, measured)


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

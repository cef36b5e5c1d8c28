"""Tasks through ``tools/evaluate.py`` beside the same tasks through lm-eval alone: scores, answers, seconds.

    python benchmarks/evaluation/beside_lm_eval.py --hf-model models/SmolLM2-135M-Instruct --task-data task-data \\
        [--tasks gsm8k svamp] [--num-fewshot 1] [--task-limit 16] [--dtype float32]

``--task-data`` holds ``TASK.jsonl`` and ``TASK.fewshot.jsonl`` with the fields that the tasks' YAML files name. lm-eval
reads them itself; the model and its type are the same, so that every answer has to be equal, letter for letter.
A task with two ways of reading an answer (GSM8K) logs, and so counts, each twice.
Reading the model is in the seconds; the tool's are a process's, lm-eval runs in this one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run both, print a row for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf-model", required=True, metavar="DIR")
    parser.add_argument("--task-data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", nargs="+", default=["gsm8k", "svamp"])
    parser.add_argument("--num-fewshot", type=int, default=1)
    parser.add_argument("--task-limit", type=int, default=16)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    arguments = parser.parse_args()
    print("| task | questions | score, tool | score, lm-eval | equal answers | seconds, tool | seconds, lm-eval |")
    print("|---|---|---|---|---|---|---|")
    for task in arguments.tasks:
        print(row(task, arguments), flush=True)


def row(task: str, given: argparse.Namespace) -> str:
    """One line of the table."""
    from lm_eval.models.huggingface import HFLM

    started = time.monotonic()
    found, answers = through_the_tool(task, given)
    between = time.monotonic()
    model = HFLM(pretrained=given.hf_model, dtype=given.dtype, device="cpu", batch_size=8)
    direct = directly(model, given.task_data.resolve(), task, given.num_fewshot, given.task_limit)
    ended = time.monotonic()
    wanted = [sample["resps"] for sample in json.loads(json.dumps(direct["samples"][task], default=str))]
    num_equal = sum(left == right for left, right in zip(answers, wanted, strict=True))
    name, _, filter_name = found["metric"].rstrip(")").partition(" (")
    score = direct["results"][task][f"{name},{filter_name or 'none'}"]
    return (
        f"| {task} | {found['samples']} | {found['value']:.4f} | {score:.4f} | {num_equal} of {len(wanted)} | "
        f"{between - started:.0f} | {ended - between:.0f} |"
    )


def through_the_tool(task: str, given: argparse.Namespace) -> tuple[dict, list]:
    """The task's entry of ``results.json``, and the answers."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "evaluation")
        command = [sys.executable, ROOT / "tools" / "evaluate.py", "--hf-model", given.hf_model, "--output", output]
        command += ["--tasks", task, "--task-data", given.task_data, "--dtype", given.dtype]
        command += ["--num-fewshot", given.num_fewshot, "--task-limit", given.task_limit]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (suite,) = json.loads((output / "results.json").read_text(encoding="utf-8"))["tasks"].values()
        lines = (output / f"samples-{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return suite[task], [json.loads(line)["resps"] for line in lines]


def directly(model: object, folder: Path, task: str, num_fewshot: int, limit: int | None = None) -> dict:
    """What lm-eval, with one of its models, makes of a task whose JSONL files it reads itself."""
    import lm_eval
    import lm_eval.tasks

    theirs = Path(lm_eval.tasks.__file__).parent / task
    ours = ROOT / "megatron_mixcpt" / "evaluation" / "tasks"
    files = {"test": str(folder / f"{task}.jsonl"), "train": str(folder / f"{task}.fewshot.jsonl")}
    local = {"dataset_path": "json", "dataset_name": None, "test_split": "test", "fewshot_split": "train"}
    local["dataset_kwargs"] = {"data_files": files, "cache_dir": str(folder / "cache")}
    return lm_eval.simple_evaluate(
        model=model,
        tasks=[{"group": "local", "task": [{"task": task, **local}]}],
        task_manager=lm_eval.tasks.TaskManager(
            include_defaults=False, include_path=str(theirs if theirs.is_dir() else ours)
        ),
        num_fewshot=num_fewshot,
        limit=limit,
    )


if __name__ == "__main__":
    main()

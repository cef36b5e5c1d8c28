"""Compare what tools/evaluate.py wrote with lm-eval called directly on the same Hugging Face folder and local files.

    python tools/evaluate.py --hf-model MODEL --tasks gsm8k svamp humaneval --task-data DATA --task-limit 8 \\
        --num-fewshot 0 --run-generated-code --output evaluation
    python benchmarks/evaluation/direct.py --hf-model MODEL --task-data DATA --results evaluation

lm-eval reads the rows itself (`datasets`, in the data set's own fields), loads the model itself and keeps its own
results. Prints both scores of each task and how many answers are the same to the letter. Two tasks are not lm-eval's
own: it has no SVAMP, and its HumanEval downloads what runs the programs; they are read from this package's YAML files.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
from lm_eval.models.huggingface import HFLM

OURS = Path(__file__).parents[2] / "megatron_mixcpt" / "evaluation" / "tasks"
FIELDS = {
    "gsm8k": {"question": "prompt", "answer": "response"},
    "svamp": {"question_concat": "prompt", "Answer": "answer"},
}
METRICS = {"gsm8k": "exact_match,strict-match", "svamp": "exact_match,none", "humaneval": "pass@1,none"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score_directly(model: HFLM, task: str, data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's results of one task on DATA/TASK.jsonl."""
    theirs = Path(lm_eval.tasks.__file__).parent / task
    with tempfile.TemporaryDirectory() as folder:
        rows = read_lines(data / f"{task}.jsonl")
        renamed = [row | {name: row[other] for name, other in FIELDS.get(task, {}).items()} for row in rows]
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in renamed), encoding="utf-8")
        local = {"task": task, "dataset_path": "json", "dataset_name": None, "test_split": "test"}
        local |= {"training_split": None, "fewshot_split": None}
        local["dataset_kwargs"] = {"data_files": {"test": str(path)}, "cache_dir": folder}
        return lm_eval.simple_evaluate(
            model=model,
            tasks=[{"group": "local", "task": [local]}],
            task_manager=lm_eval.tasks.TaskManager(
                include_defaults=False, include_path=str(theirs if task == "gsm8k" else OURS)
            ),
            num_fewshot=settings["--num-fewshot"],
            limit=settings["--task-limit"],
            confirm_run_unsafe_code=settings["--run-generated-code"],
        )


def main() -> None:
    """Run lm-eval on every task of the results, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf-model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--task-data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="output of tools/evaluate.py")
    arguments = parser.parse_args()
    results = json.loads((arguments.results / "results.json").read_text(encoding="utf-8"))
    settings = results["settings"]
    batch_size = settings["--task-batch-size"]
    model = HFLM(pretrained=str(arguments.hf_model), dtype=settings["--dtype"], batch_size=batch_size)
    for tasks in results["tasks"].values():
        for task, entry in tasks.items():
            direct = score_directly(model, task, arguments.task_data, settings)
            found = [line["resps"] for line in read_lines(arguments.results / f"samples-{task}.jsonl")]
            wanted = [sample["resps"] for sample in direct["samples"][task]]
            same = sum(left == right for left, right in zip(found, wanted, strict=True))
            score = direct["results"][task][METRICS[task]]
            print(f"{task:<12} tool {entry['value']:.4f}  lm-eval {score:.4f}  same answers {same} of {len(wanted)}")


if __name__ == "__main__":
    main()

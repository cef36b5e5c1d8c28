"""The suites of the paper's tables, as tasks of lm-eval: which metric, how many examples, where its data lie.

Answers are greedy (temperature 0), as in the paper (appendix A.5). How many examples the paper gives each task we do
not know: the numbers here are those that the task is usually reported with, and ``--num-fewshot`` changes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_mixcpt.errors import ConfigError

OURS = ""
"""The ``folder`` of the tasks in ``megatron_mixcpt/evaluation/tasks``."""


@dataclass(frozen=True)
class BenchmarkTask:
    """A task, or a group of tasks that has one score."""

    name: str
    """As lm-eval names it."""
    about: str
    metric: str
    """``METRIC,FILTER`` as lm-eval names it in its results."""
    num_fewshot: int
    folder: str = OURS
    """The folder of ``lm_eval/tasks`` that defines it."""
    own_examples: bool = False
    """Whether the task fixes its examples, or that it has none; ``--num-fewshot`` does not change them."""
    runs_code: bool = False
    """Whether programs that the model writes are run."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """For rows of ``--task-data`` in another form: data set's field -> row's field, where a row has them all."""

    @property
    def metric_name(self) -> str:
        """The metric for people: ``exact_match (strict-match)``."""
        name, _, filter_name = self.metric.partition(",")
        return name if filter_name == "none" else f"{name} ({filter_name})"


SUITES: dict[str, tuple[BenchmarkTask, ...]] = {
    "wiki": (
        BenchmarkTask("nq_open", "Natural Questions, open", "exact_match,remove_whitespace", 5, "nq_open"),
        BenchmarkTask("triviaqa", "TriviaQA without context", "exact_match,remove_whitespace", 5, "triviaqa"),
    ),
    "math": (
        BenchmarkTask(
            "gsm8k",
            "GSM8K",
            "exact_match,strict-match",
            5,
            "gsm8k",
            renames={"question": "prompt", "answer": "response"},
        ),
        BenchmarkTask("hendrycks_math", "MATH, seven subjects", "exact_match,none", 4, "hendrycks_math"),
    ),
    "code": (
        BenchmarkTask("humaneval", "HumanEval", "pass@1,none", 0, own_examples=True, runs_code=True),
        BenchmarkTask("mbpp", "MBPP", "pass@1,none", 3, own_examples=True, runs_code=True),
    ),
    "reading": (
        BenchmarkTask("race", "RACE, the hard part (high schools)", "acc,none", 0, "race"),
        BenchmarkTask("openbookqa", "OpenBookQA without its book", "acc_norm,none", 0, "openbookqa"),
    ),
    "reasoning": (
        BenchmarkTask("hellaswag", "HellaSwag", "acc_norm,none", 0, "hellaswag"),
        BenchmarkTask("commonsense_qa", "CommonsenseQA", "acc,none", 0, "commonsense_qa"),
        BenchmarkTask("piqa", "PIQA", "acc_norm,none", 0, "piqa"),
    ),
    "exams": (
        BenchmarkTask("mmlu", "MMLU, 57 subjects", "acc,none", 5, "mmlu/default"),
        BenchmarkTask(
            "bbh",
            "BIG-Bench Hard with reasoning",
            "exact_match,get-answer",
            3,
            "bbh/cot_fewshot",
            own_examples=True,
        ),
        BenchmarkTask("arc_challenge", "ARC, challenge set", "acc_norm,none", 25, "arc"),
        BenchmarkTask("ceval-valid", "C-Eval, validation set, 52 subjects", "acc,none", 5, "ceval"),
    ),
    "medicine": (
        BenchmarkTask("pubmed_rct20k", "RCT: the role of a sentence in a trial's abstract", "acc,none", 0),
        BenchmarkTask("pubmedqa", "PubMedQA", "acc,none", 0, "pubmedqa"),
        BenchmarkTask("medical_question_pairs", "MQP: whether two questions ask the same", "acc,none", 0),
    ),
    "arithmetic": (
        BenchmarkTask(
            "svamp",
            "SVAMP (not in the paper)",
            "exact_match,none",
            5,
            renames={"question_concat": "prompt", "Answer": "answer"},
        ),
    ),
}


def choose_tasks(names: Sequence[str]) -> dict[str, tuple[BenchmarkTask, ...]]:
    """Suites, or single tasks of them, by name -> the tasks to run by suite. Raises ConfigError."""
    known = set(SUITES) | {task.name for tasks in SUITES.values() for task in tasks}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--tasks {unknown[0]}: no such suite or task; --list-suites lists them")
    chosen = {
        suite: tuple(task for task in tasks if suite in names or task.name in names) for suite, tasks in SUITES.items()
    }
    return {suite: tasks for suite, tasks in chosen.items() if tasks}


def listing() -> str:
    """What ``--list-suites`` prints."""
    lines = [f"{'suite':<12}{'task':<24}{'metric':<34}{'shots':>5}  what"]
    for suite, tasks in SUITES.items():
        for task in tasks:
            about = task.about + ("; needs --run-generated-code" if task.runs_code else "")
            lines.append(f"{suite:<12}{task.name:<24}{task.metric_name:<34}{task.num_fewshot:>5}  {about}")
    return "\n".join([*lines, "Data come from the Hugging Face Hub, or from the files of --task-data."])

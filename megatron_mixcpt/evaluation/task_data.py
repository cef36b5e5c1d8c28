"""lm-eval's tasks, their data downloaded by lm-eval or read from local files (``--task-data``).

``DIR/TASK.jsonl`` (or ``.jsonl.gz``, ``.parquet``) holds the rows to answer, with the fields of the task's data set,
and ``DIR/TASK.fewshot.jsonl`` those that examples are taken from. A group has such files for each of its tasks.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mixcpt.data.reading.readers import is_blank, parse, read_blocks
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.records import BadRecord
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.evaluation.suites import OURS, BenchmarkTask

if TYPE_CHECKING:  # lm-eval is an extra
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def load_task(suite: str, task: BenchmarkTask, folder: Path | None, num_fewshot: int) -> "Task | Group":
    """The task with its data, from ``folder`` or, where it is None, from wherever lm-eval finds them.

    Raises:
        ConfigError: a file is missing, or a download failed.
        DataError: a file cannot be read.
    """
    manager = _manager(task)
    if folder is not None:
        return _load_local(manager, task, folder, num_fewshot)
    try:
        loaded = manager.load([task.name])
        return loaded["groups"].get(task.name) or loaded["tasks"][task.name]
    except Exception as error:  # datasets, huggingface_hub and their dependencies raise errors of many types
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"--tasks {suite}: the data of {task.name} could not be downloaded from the Hugging Face Hub "
            f"({first_line}); check the connection, or give local files with --task-data (docs/how-to/evaluate.md)"
        ) from error


def _manager(task: BenchmarkTask) -> "TaskManager":
    """lm-eval's index of the task's folder alone: that of all its tasks takes half a minute."""
    import lm_eval.tasks

    theirs = Path(lm_eval.tasks.__file__).parent
    place = Path(__file__).parent / "tasks" if task.folder == OURS else theirs / task.folder
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(place))


def _load_local(manager: "TaskManager", task: BenchmarkTask, folder: Path, num_fewshot: int) -> "Task | Group":
    """The task, or the group with each of its tasks, reading ``folder``; everything else as lm-eval defines it."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    leaves = list(leaf_names(manager, task.name))
    members = [{"task": leaf, **_overrides(task, leaf, folder, num_fewshot)} for leaf in leaves]
    loaded = manager.load([{"group": "local", "task": members}])["tasks"]
    if leaves == [task.name]:
        return loaded[task.name]
    metrics = (manager.task_index[task.name].cfg or {})["aggregate_metric_list"]
    group = Group.from_config(GroupConfig(group=task.name, task=leaves, aggregate_metric_list=metrics))
    for leaf in leaves:
        group.add(loaded[leaf])
    return group


def leaf_names(manager: "TaskManager", name: str) -> Iterator[str]:
    """The single tasks that a name of lm-eval stands for; nothing is downloaded."""
    entry = manager.task_index[name]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        yield name
        return
    for member in members:
        yield from leaf_names(manager, member)


def _overrides(task: BenchmarkTask, leaf: str, folder: Path, num_fewshot: int) -> dict[str, Any]:
    """The fields of a task's definition that change with local files. Raises ConfigError where a file is missing."""
    files = {"test": _find(folder, leaf)}
    if num_fewshot and not task.own_examples:
        files["fewshot"] = _find(folder, f"{leaf}.fewshot", f"{num_fewshot} examples, or give --num-fewshot 0")
    return {
        "custom_dataset": _reader(files, task.renames),
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "fewshot" if "fewshot" in files else None,
    }


def _find(folder: Path, name: str, what: str = "the rows to answer") -> Path:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if not found:
        raise ConfigError(
            f"--task-data {folder}: {name}.jsonl does not exist; add it with {what} (docs/how-to/evaluate.md)"
        )
    return found[0]


def _reader(files: Mapping[str, Path], renames: Mapping[str, str]) -> Callable[..., dict[str, Any]]:
    """What lm-eval calls for a task's data, with the task's metadata: splits by name."""

    def read(**_: Any) -> dict[str, Any]:
        import datasets

        return {split: datasets.Dataset.from_list(read_rows(path, renames)) for split, path in files.items()}

    return read


def read_rows(path: Path, renames: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of a file, with the data set's own field names. Raises DataError, naming file and line."""
    [source] = find_sources("task-data", [str(path)])
    rows = []
    for number, line in enumerate((line for block in read_blocks(source) for line in block), start=1):
        if is_blank(source, line):
            continue
        try:
            row = parse(source, line)
        except BadRecord as error:
            raise DataError(f"{path}:{number}: {error.detail}; correct or remove the line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected an object; correct or remove the line")
        is_renamed = renames and all(other in row for other in renames.values())
        rows.append(row | {name: row[other] for name, other in renames.items()} if is_renamed else row)
    return rows

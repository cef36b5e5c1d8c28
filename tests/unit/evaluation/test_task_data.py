"""Suites are what lm-eval knows them as, and read local files where asked to; nothing is downloaded here."""

import json
import re
from pathlib import Path

import pytest
import yaml

from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.evaluation import task_data
from megatron_mixcpt.evaluation.suites import SUITES, choose_tasks, listing
from megatron_mixcpt.evaluation.task_data import leaf_names, load_task, read_rows

TASKS = {task.name: task for tasks in SUITES.values() for task in tasks}
MEMBERS = {"mmlu": 57, "bbh": 27, "ceval-valid": 52, "hendrycks_math": 7}


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_known_to_lm_eval_with_its_metric(task):
    manager = task_data._manager(task)
    leaves = list(leaf_names(manager, task.name))
    assert len(leaves) == MEMBERS.get(task.name, 1)
    name, _, filter_name = task.metric.partition(",")
    for leaf in leaves:
        config = manager.task_index[leaf].cfg
        assert name in [metric["metric"] for metric in config["metric_list"]]
        assert filter_name in [item["name"] for item in config.get("filter_list", [{"name": "none"}])]
        assert config.get("num_fewshot") in (None, task.num_fewshot)
        has_own = config.get("num_fewshot") == 0 or "samples" in config.get("fewshot_config", {})
        assert task.own_examples == has_own
        assert not config.get("unsafe_code") or task.runs_code
        # Temperature 0, as in the paper's appendix A.5.
        assert not config.get("generation_kwargs", {}).get("do_sample")


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_is_asked_for_as_lm_eval_does(name):
    """Only what runs the programs is ours."""
    import lm_eval.tasks

    class Loader(yaml.SafeLoader): ...

    Loader.add_constructor("!function", lambda loader, node: node.value)
    theirs = Path(lm_eval.tasks.__file__).parent / name / f"{name}.yaml"
    ours = Path(task_data.__file__).parent / "tasks" / f"{name}.yaml"
    expected, found = (yaml.load(path.read_text(), Loader) for path in (theirs, ours))
    for key in expected.keys() - {"metric_list", "filter_list", "repeats", "fewshot_config"}:
        assert found[key] == expected[key], key


def test_suites_and_single_tasks_are_chosen():
    chosen = choose_tasks(["gsm8k", "medicine"])
    assert {suite: [task.name for task in tasks] for suite, tasks in chosen.items()} == {
        "math": ["gsm8k"],
        "medicine": ["pubmed_rct20k", "pubmedqa", "medical_question_pairs"],
    }
    with pytest.raises(ConfigError, match="--tasks gsm9k: no such suite or task; --list-suites lists them"):
        choose_tasks(["math", "gsm9k"])
    assert all(name in listing() for name in TASKS)


def test_local_rows_in_the_form_of_instructions_are_renamed(tmp_path):
    write(tmp_path / "gsm8k.jsonl", [{"prompt": "Q", "response": "R\n#### 1", "answer": "1"}, {"question": "P"}])
    first, second = read_rows(tmp_path / "gsm8k.jsonl", TASKS["gsm8k"].renames)
    assert (first["question"], first["answer"], second) == ("Q", "R\n#### 1", {"question": "P"})


def test_a_group_keeps_its_members_and_their_mean(tmp_path):
    row = {"problem": "1 + 1?", "solution": r"\boxed{2}"}
    for leaf in leaf_names(task_data._manager(TASKS["hendrycks_math"]), "hendrycks_math"):
        write(tmp_path / f"{leaf}.jsonl", [row])
    group = load_task("math", TASKS["hendrycks_math"], tmp_path, 0)
    assert len(group.get_all_tasks()) == 7
    assert [metric.metric for metric in group.aggregate_metric_list] == ["exact_match"]
    assert group.get_all_tasks()[0].eval_docs[0]["answer"] == "2"


def test_missing_and_damaged_files_are_named(tmp_path):
    gsm8k = TASKS["gsm8k"]
    with pytest.raises(ConfigError, match=re.escape("gsm8k.jsonl does not exist; add it with the rows to answer")):
        load_task("math", gsm8k, tmp_path, 0)
    write(tmp_path / "gsm8k.jsonl", [{"question": "Q", "answer": "#### 1"}])
    with pytest.raises(ConfigError, match="fewshot.jsonl does not exist; add it with 5 examples, or give --num-"):
        load_task("math", gsm8k, tmp_path, 5)
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "Q"}\n[1]\n')
    with pytest.raises(DataError, match=r"gsm8k.jsonl:2: expected an object; correct or remove the line"):
        load_task("math", gsm8k, tmp_path, 0)


def test_without_network_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        load_task("reasoning", TASKS["piqa"], None, 0)
    assert "--tasks reasoning: the data of piqa could not be downloaded from the Hugging Face Hub" in str(refused.value)
    assert "give local files with --task-data" in str(refused.value) and "\n" not in str(refused.value)

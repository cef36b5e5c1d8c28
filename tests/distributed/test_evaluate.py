"""Perplexities of ``tools/evaluate.py`` against a plain double loop in transformers, at several layouts."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.evaluation.beside_lm_eval import directly
from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.unit.data.tiny_tokenizer import TRAINING_TEXTS, save_tiny_tokenizer
from tests.unit.evaluation.models.openai_server import NAME, serving

SEQUENCE_LENGTH, STRIDE = 24, 10
QUESTIONS = [f"Add {number} and 22, they said. It will be" for number in range(5)]
ANSWERS = ["22", "10", "22", "1", "22"]
TEXTS = [TRAINING_TEXTS[0], "Ça <|endoftext|> coûte déjà", "", TRAINING_TEXTS[1] * 2, "x"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder ``hf``, and texts as compressed JSONL and as a folder of plain text."""
    root = tmp_path_factory.mktemp("evaluate")
    save_tiny_tokenizer(root / "hf", vocab_size=VOCAB_SIZE)
    taught(AutoTokenizer.from_pretrained(root / "hf")).save_pretrained(root / "hf")
    with gzip.open(root / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"body": text}) + "\n" for text in TEXTS)
    (root / "folder").mkdir()
    for number, text in enumerate(TEXTS[:2]):
        (root / "folder" / f"{number}.txt").write_text(text, encoding="utf-8")
    return root


def taught(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A tiny model that answers 22 to every question, so that scores are neither 0 nor 1."""
    model = build_model("llama", 0)
    texts = [f"Question: {text}\nAnswer: #### 22\n\nQuestion:" for text in QUESTIONS]
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def expected_nats(world: Path, texts: list[str]) -> tuple[float, int]:
    """The sum over all tokens of -log p(token given its context), one forward pass for each, and their number."""
    model = LlamaForCausalLM.from_pretrained(world / "hf", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "hf")
    nats, num_tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = [tokenizer.eos_token_id, *ids]
        for place in range(1, len(ids)):
            start = max(0, math.ceil((place - SEQUENCE_LENGTH) / STRIDE)) * STRIDE
            with torch.no_grad():
                logits = model(torch.tensor([ids[start:place]])).logits[0, -1].double()
            nats -= logits.log_softmax(-1)[ids[place]].item()
            num_tokens += 1
    return nats, num_tokens


def check(found: dict, world: Path, texts: list[str]) -> None:
    """One text set's entry of ``results.json``."""
    nats, num_tokens = expected_nats(world, texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert (found["documents"], found["tokens"], found["bytes"]) == (len(texts), num_tokens, num_bytes)
    assert (found["sequence_length"], found["stride"]) == (SEQUENCE_LENGTH, STRIDE)
    # float32 on both sides, sums in another order.
    assert math.log(found["perplexity"]) == pytest.approx(nats / num_tokens, abs=2e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def window_flags() -> list[str]:
    return ["--sequence-length", str(SEQUENCE_LENGTH), "--stride", str(STRIDE), "--dtype", "float32"]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


PAIRS = [{"question_1": text, "question_2": QUESTIONS[0], "label": place % 2} for place, text in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def expected_tasks(world: Path) -> dict[str, dict]:
    """Fills the folder ``tasks`` with task data; lm-eval's own results on the model."""
    from lm_eval.models.huggingface import HFLM

    folder = world / "tasks"
    folder.mkdir()
    gsm8k = [{"question": text, "answer": f"#### {answer}"} for text, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    svamp = [{"question_concat": text, "Answer": answer} for text, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    rows = {"gsm8k": gsm8k, "svamp": svamp, "medical_question_pairs": PAIRS}
    for task, lines in rows.items():
        write(folder / f"{task}.jsonl", lines)
        write(folder / f"{task}.fewshot.jsonl", lines[:1])
    model = HFLM(pretrained=str(world / "hf"), dtype="float32", device="cpu", batch_size=8)
    results = {task: directly(model, folder, task, 1) for task in rows}
    # The tool takes rows in the form of instructions, too.
    write(folder / "svamp.jsonl", [{"prompt": row["question_concat"], "answer": row["Answer"]} for row in svamp])
    return results


def test_the_tool(repository, world, expected_tasks, tmp_path):
    """Perplexity and tasks of a Megatron checkpoint, with the files that come out."""
    from megatron_mixcpt.conversion.convert import convert_from_hf

    convert_from_hf(world / "hf", tmp_path / "checkpoint")
    output = tmp_path / "evaluation"
    texts = ("--perplexity", f"all={world / 'texts.jsonl.gz'}", "--text-field", "body", *window_flags())
    tasks = ("--tasks", "gsm8k", "medical_question_pairs", "arithmetic", "--num-fewshot", "1")
    place = ("--load", tmp_path / "checkpoint", "--task-data", world / "tasks", "--output", output, "--name", "tiny")
    command = [sys.executable, repository / "tools" / "evaluate.py", *place, *texts, *tasks]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=repository, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((output / "results.json").read_text())
    assert list(results) == ["model", "perplexity", "tasks", "settings", "versions", "created"]
    path = str(tmp_path / "checkpoint")
    assert results["model"] == {"path": path, "kind": "megatron", "iteration": None, "name": "tiny"}
    check(results["perplexity"]["all"], world, TEXTS)
    assert f"{results['perplexity']['all']['bits_per_byte']:.4f}" in done.stdout
    check_tasks(results["tasks"], expected_tasks, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "evaluation"]


def check_tasks(found: dict[str, dict], expected: dict[str, dict], output: Path, tolerance: float = 0) -> None:
    """The ``tasks`` entry of ``results.json`` and the samples: equal, for the model is the same bit for bit.

    ``tolerance`` in nats is that of log-likelihoods where batches are others.
    """
    assert list(found) == ["math", "medicine", "arithmetic"]
    for suite, task, metric in (
        ("math", "gsm8k", "exact_match,strict-match"),
        ("medicine", "medical_question_pairs", "acc,none"),
        ("arithmetic", "svamp", "exact_match,none"),
    ):
        entry, direct = found[suite][task], expected[task]
        assert entry["value"] == direct["results"][task][metric]
        assert (entry["samples"], entry["num_fewshot"]) == (len(QUESTIONS), 1)
        samples = [json.loads(line) for line in (output / f"samples-{task}.jsonl").read_text().splitlines()]
        wanted = json.loads(json.dumps(direct["samples"][task], default=str))
        for sample, one in zip(samples, wanted, strict=True):
            check_answers(sample["resps"], one["resps"], tolerance)
        assert [sample["arguments"] for sample in samples] == [sample["arguments"] for sample in wanted]
    stderr = expected["medical_question_pairs"]["results"]["medical_question_pairs"]["acc_stderr,none"]
    assert found["medicine"]["medical_question_pairs"]["stderr"] == stderr
    assert found["arithmetic"]["svamp"]["value"] == found["math"]["gsm8k"]["value"] == 0.6


def check_answers(found: list, expected: list, tolerance: float) -> None:
    """A text, or log-likelihood and whether it is the greedy one, for each request."""
    for [answer], [wanted] in zip(found, expected, strict=True):
        if isinstance(wanted, str):
            assert answer == wanted
        else:
            assert float(answer[0]) == pytest.approx(float(wanted[0]), abs=tolerance) and answer[1] == wanted[1]


def test_a_server(world, expected_tasks, tmp_path, capsys):
    """The first question of two tasks, to the same model behind a server: scores, answers and prompts are equal."""
    from megatron_mixcpt.evaluation.evaluate import evaluate

    tokenizer = AutoTokenizer.from_pretrained(world / "hf")
    with serving(LlamaForCausalLM.from_pretrained(world / "hf").eval(), tokenizer) as server:
        place = ["--hf-model", str(world / "hf"), "--base-url", server.url, "--served-model", NAME]
        asked = ["--tasks", "gsm8k", "medical_question_pairs", "--task-limit", "1"]
        evaluate(task_settings(world, tmp_path / "served", [*place, *asked]))
    results = json.loads((tmp_path / "served" / "results.json").read_text())
    path = str((world / "hf").resolve())
    assert results["model"] == {
        "path": path,
        "kind": "server",
        "iteration": None,
        "name": NAME,
        "url": server.url,
        "served_model": NAME,
    }
    assert "--dtype" not in results["settings"] and results["settings"]["--num-fewshot"] == 1
    for suite, task, metric in (("math", "gsm8k", "exact_match"), ("medicine", "medical_question_pairs", "acc")):
        lines = (tmp_path / "served" / f"samples-{task}.jsonl").read_text().splitlines()
        direct = json.loads(json.dumps(expected_tasks[task]["samples"][task], default=str))
        wanted = [sample for sample in direct if sample["doc_id"] == 0]
        assert results["tasks"][suite][task]["value"] == wanted[0][metric]
        for sample, one in zip(map(json.loads, lines), wanted, strict=True):
            assert sample["arguments"] == one["arguments"]
            check_answers(sample["resps"], one["resps"], 1e-4)  # float32: a question alone, and in a batch
    assert "math        gsm8k" in capsys.readouterr().out


def task_settings(world: Path, output: Path, more: list[str]) -> Any:
    """Of the tasks in ``expected_tasks``."""
    from megatron_mixcpt.evaluation.settings import EvaluateSettings
    from megatron_mixcpt.evaluation.tool import build_parser
    from megatron_mixcpt.flags import settings_from

    flags = ["--task-data", world / "tasks", "--output", output, "--num-fewshot", "1"]
    flags += ["--tasks", "gsm8k", "medical_question_pairs", "arithmetic", *more]
    return settings_from(build_parser().parse_args([*map(str, flags)]), EvaluateSettings)


def test_two_ranks(world, expected_tasks, tmp_path):
    """Cut in tensors, stages or data, from either kind of folder, in large batches and small ones; tasks shared."""
    run_distributed(check_two_ranks, 2, str(world), str(tmp_path), cpu_emulation=True, timeout_s=200)
    results = json.loads((tmp_path / "shared" / "results.json").read_text())
    # Batches of two, so that there are several: other padding than in the expected batches of eight.
    check_tasks(results["tasks"], expected_tasks, tmp_path / "shared", tolerance=1e-4)


def check_two_ranks(world: str, folder: str) -> None:
    from megatron_mixcpt.conversion.convert import convert_from_hf
    from megatron_mixcpt.evaluation import perplexity

    world, checkpoint = Path(world), Path(folder) / "checkpoint"
    convert_from_hf(world / "hf", checkpoint)
    perplexity.PART_TOKENS = 40
    for sizes, batch_tokens, model in (((2, 1), 512, "hf"), ((1, 2), 30, "megatron"), ((1, 1), 100, "megatron")):
        flags = ("--load", str(checkpoint)) if model == "megatron" else ("--hf-model", str(world / "hf"))
        found = measure([*flags, *text_flags(world / "folder"), "--batch-tokens", str(batch_tokens)], *sizes)
        check(found["texts"], world, TEXTS[:2])
    check_refusals(world, checkpoint)
    check_shared_tasks(world, checkpoint, Path(folder) / "shared")


def check_shared_tasks(world: Path, checkpoint: Path, output: Path) -> None:
    """Each rank answers a share of the questions to an export; the first one's results are compared by the test."""
    from megatron_mixcpt.evaluation.evaluate import evaluate
    from megatron_mixcpt.evaluation.models.local_model import LocalModel

    asked: list[int] = []
    own = LocalModel._answer
    LocalModel._answer = lambda model, kind, items: (asked.append(len(items)), own(model, kind, items))[1]
    dist.destroy_process_group()
    join, rank = dist.init_process_group, int(os.environ["RANK"])

    def join_at_a_file(*positional: Any, name: str = "shares", **named: Any) -> None:
        join(*positional, **named, init_method=f"file://{output}.{name}", rank=rank, world_size=2)

    dist.init_process_group = join_at_a_file
    model = ["--load", str(checkpoint), "--dtype", "float32"]
    evaluate(task_settings(world, output, [*model, "--task-batch-size", "2"]))
    assert not dist.is_initialized()
    join_at_a_file("gloo", name="end")  # of run_distributed
    # Five prompts of GSM8K and of SVAMP in three batches; of MQP, five pairs with two answers of one token each.
    assert asked == ([3, 6, 3] if rank == 0 else [2, 4, 2]), asked


def text_flags(path: Path) -> list[str]:
    return ["--perplexity", f"texts={path}", "--output", "unused", *window_flags()]


def measure(argv: list[str], tp_size: int = 1, pp_size: int = 1) -> dict[str, dict]:
    """What the tool does between parsing its flags and writing, within a process group that is there already."""
    from megatron_mixcpt.evaluation.evaluate import measure_text_sets
    from megatron_mixcpt.evaluation.settings import EvaluateSettings
    from megatron_mixcpt.evaluation.tool import build_parser
    from megatron_mixcpt.flags import settings_from
    from megatron_mixcpt.inference.model_source import ModelSource

    sizes = ["--tensor-model-parallel-size", str(tp_size), "--pipeline-model-parallel-size", str(pp_size)]
    settings = settings_from(build_parser().parse_args([*argv, *sizes]), EvaluateSettings)
    source = ModelSource.open(hf_model=settings.hf_model, load=settings.load, iteration=settings.iteration)
    return measure_text_sets(source, settings)


def check_refusals(world: Path, checkpoint: Path) -> None:
    from megatron.core import parallel_state

    from megatron_mixcpt.errors import MixCPTError

    (world / "empty.jsonl").write_text('{"text": ""}\n')
    (world / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    (world / "broken.jsonl").write_text('{"text": "x"}\n{"text": 1}\n')
    hf, load = ["--hf-model", str(world / "hf")], ["--load", str(checkpoint)]
    for argv, message in (
        ([*hf, *text_flags(world / "empty.jsonl")], "empty.jsonl: holds no text; give other files"),
        ([*hf, *text_flags(world / "half.jsonl")], "document 1 holds half of a surrogate pair"),
        ([*hf, *text_flags(world / "broken.jsonl")], 'broken.jsonl:2: "text" is a number, expected text'),
        ([*hf, *text_flags(world / "missing")], "--perplexity"),
        ([*load, *text_flags(world / "folder"), "--iteration", "3"], "has no iter_0000003; it has hf, release"),
    ):
        with pytest.raises(MixCPTError) as refused:
            measure(argv)
        assert message in str(refused.value) and "\n" not in str(refused.value), str(refused.value)
        parallel_state.destroy_model_parallel()

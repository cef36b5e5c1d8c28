"""Perplexities of ``tools/evaluate.py`` against a plain double loop in transformers, at several layouts."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_run import VOCAB_SIZE, build_model
from tests.unit.data.tiny_tokenizer import TRAINING_TEXTS, save_tiny_tokenizer

SEQUENCE_LENGTH, STRIDE = 24, 10
TEXTS = [TRAINING_TEXTS[0], "Ça <|endoftext|> coûte déjà", "", TRAINING_TEXTS[1] * 2, "x"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder ``hf``, and texts as compressed JSONL and as a folder of plain text."""
    root = tmp_path_factory.mktemp("evaluate")
    build_model("llama", 0).save_pretrained(root / "hf")
    save_tiny_tokenizer(root / "hf", vocab_size=VOCAB_SIZE)
    with gzip.open(root / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"body": text}) + "\n" for text in TEXTS)
    (root / "folder").mkdir()
    for number, text in enumerate(TEXTS[:2]):
        (root / "folder" / f"{number}.txt").write_text(text, encoding="utf-8")
    return root


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


def run_tool(repository: Path, *flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(repository / "tools" / "evaluate.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=200)


def window_flags() -> list[str]:
    return ["--sequence-length", str(SEQUENCE_LENGTH), "--stride", str(STRIDE), "--dtype", "float32"]


def test_the_tool(repository, world, tmp_path):
    output = tmp_path / "evaluation"
    texts = ("--perplexity", f"all={world / 'texts.jsonl.gz'}", "--text-field", "body")
    flags = ("--hf-model", world / "hf", *texts, "--output", output, "--name", "tiny", *window_flags())
    done = run_tool(repository, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((output / "results.json").read_text())
    assert list(results) == ["model", "perplexity", "tasks", "settings", "versions", "created"]
    assert results["model"] == {"path": str(world / "hf"), "kind": "hf", "iteration": None, "name": "tiny"}
    check(results["perplexity"]["all"], world, TEXTS)
    assert f"{results['perplexity']['all']['bits_per_byte']:.4f}" in done.stdout
    assert not list(tmp_path.glob(".*"))


def test_two_ranks(world, tmp_path):
    """Cut in tensors, stages or data, from either kind of folder, in large batches and small ones."""
    run_distributed(check_two_ranks, 2, str(world), str(tmp_path), cpu_emulation=True, timeout_s=200)


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


def text_flags(path: Path) -> list[str]:
    return ["--perplexity", f"texts={path}", "--output", "unused", *window_flags()]


def measure(argv: list[str], tp_size: int = 1, pp_size: int = 1) -> dict[str, dict]:
    """What the tool does between parsing its flags and writing, within a process group that is there already."""
    from megatron_mixcpt.evaluation.arguments import evaluate_parser, evaluate_settings
    from megatron_mixcpt.evaluation.evaluate import measure_text_sets
    from megatron_mixcpt.evaluation.model_source import ModelSource

    given = evaluate_parser("").parse_args(argv)
    source = ModelSource.open(hf_model=given.hf_model, load=given.load, iteration=given.iteration)
    return measure_text_sets(source, evaluate_settings(given), tp_size=tp_size, pp_size=pp_size)


def check_refusals(world: Path, checkpoint: Path) -> None:
    from megatron.core import parallel_state

    from megatron_mixcpt.errors import MixCPTError

    (world / "empty.jsonl").write_text('{"text": ""}\n')
    (world / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    (world / "broken.jsonl").write_text('{"text": "x"}\n{"text": 1}\n')
    hf, load = ["--hf-model", str(world / "hf")], ["--load", str(checkpoint)]
    texts = text_flags(world / "folder")
    for argv, message in (
        ([*hf, *text_flags(world / "empty.jsonl")], "empty.jsonl: holds no text; give other files"),
        ([*hf, *text_flags(world / "half.jsonl")], "document 1 holds half of a surrogate pair"),
        ([*hf, *text_flags(world / "broken.jsonl")], 'broken.jsonl:2: "text" is a number, expected text'),
        ([*hf, *text_flags(world / "missing")], "--perplexity"),
        ([*hf, *texts, "--stride", "25"], "--stride 25: expected 1 to --sequence-length 24"),
        ([*hf, *texts, "--perplexity", "texts"], "--perplexity texts: expected NAME=PATH"),
        ([*hf, *texts, "--perplexity", "a=x", "a=y"], "--perplexity a=y: the name a is given twice"),
        ([*hf, *texts, "--iteration", "3"], "--iteration 3 is of a Megatron checkpoint: give --load too"),
        ([*load, *texts, "--iteration", "3"], "has no iter_0000003; it has hf, release"),
        ([*hf, "--output", "unused"], "nothing to evaluate: give --perplexity NAME=PATH"),
    ):
        with pytest.raises(MixCPTError) as refused:
            measure(argv)
        assert message in str(refused.value) and "\n" not in str(refused.value), str(refused.value)
        parallel_state.destroy_model_parallel()

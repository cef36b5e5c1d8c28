"""Format alignment scores against an independent computation, at several layouts; order, resume, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

SEQ_LENGTH = 96
WORDS = "the quick brown fox jumps over a lazy dog and it will be fun they said range add print".split()


def words(start: int, count: int) -> str:
    return " ".join(WORDS[(start * 7 + place * (start + 3)) % len(WORDS)] for place in range(count))


SFT = [{"prompt": words(n, 3 + n % 9), "response": words(n + 50, 1 + (5 * n) % 14)} for n in range(28)]
SFT[5] = {
    "messages": [
        {"role": "system", "content": "Be <|im_end|> brief."},
        {"role": "user", "content": "add 2\n"},
        {"role": "assistant", "content": "It is"},
        {"role": "user", "content": "Again"},
        {"role": "assistant", "content": "\n 22 <|im_end|> it is"},
    ]
}
SFT[3] = {"prompt": "Q", "response": "  "}  # rejected: empty
SFT[9] = {"prompt": "Q", "response": words(1, 300)}  # rejected: too long
SFT[11] = {"messages": [{"role": "user", "content": "Q"}, {"role": "tool", "content": "x"}]}  # rejected: no response
REJECTED = {4: "empty", 10: "too_long", 12: "bad_messages"}
DPO = [
    {"prompt": words(n, 2 + n), "chosen": words(n + 9, 1 + n % 8), "rejected": words(n + 4, 2 + n % 5)}
    for n in range(12)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder ``hf`` and data files."""
    root = tmp_path_factory.mktemp("score")
    build_model("llama", 0).save_pretrained(root / "hf")
    save_tiny_tokenizer(root / "hf", vocab_size=VOCAB_SIZE)
    for name, rows in (("sft", SFT), ("dpo", DPO)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """(kind, line) -> both losses, by transformers and ChatML written out by hand."""
    model = LlamaForCausalLM.from_pretrained(world / "hf", dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "hf")
    start, end, eos = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])

    def text(content: str) -> list[int]:
        return tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def loss(context: list[int], response: list[int]) -> float:
        ids = torch.tensor([context + response])
        with torch.no_grad():
            log_probs = model(ids).logits[0].double().log_softmax(-1)
        return -sum(log_probs[len(context) + i - 1, token].item() for i, token in enumerate(response)) / len(response)

    losses = {}
    for kind, rows in (("sft", SFT), ("dpo", DPO)):
        for line, row in enumerate(rows, start=1):
            if kind == "sft" and line in REJECTED:
                continue
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            responses = [row["chosen"], row["rejected"]] if kind == "dpo" else [row.get("response")]
            if "messages" in row:
                *messages, last = messages
                responses = [last["content"]]
            query = []
            for message in messages:
                query += [start, *text(message["role"] + "\n" + message["content"]), end, *text("\n")]
            query += [start, *text("assistant\n")]
            encoded = [text(response) for response in responses]  # the end of turn is no token of the response's own
            second = loss(query, encoded[1]) if kind == "dpo" else loss([eos], encoded[0])
            losses[kind, line] = (loss(query, encoded[0]), second)
    return losses


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    files = ("--sft", str(world / "sft.jsonl"), "--dpo", str(world / "dpo.jsonl"), "--output", str(output))
    options = ("--chat-template", "chatml", "--dtype", "float32", "--seq-length", str(SEQ_LENGTH))
    options += ("--on-bad-record", "skip")
    return ["--hf-model", str(world / "hf"), *files, *options, *more]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_scores(output: Path, expected: dict[tuple[str, int], tuple[float, float]]) -> None:
    """Lines in the order of the input, losses and scores as expected; the rest listed with reasons."""
    scores = read(output)
    assert [(line["kind"], line["line"]) for line in scores] == list(expected)
    for line in scores:
        first, second = expected[line["kind"], line["line"]]
        names = ("loss_given_query", "loss_alone") if line["kind"] == "sft" else ("loss_chosen", "loss_rejected")
        # float32 of the engine against float64: sums in another order.
        assert [line[name] for name in names] == pytest.approx([first, second], abs=1e-4)
        assert line["fas"] == pytest.approx(first / second, abs=1e-4)
        assert line["perplexity"] == pytest.approx(torch.tensor(first).exp().item(), rel=1e-3)
    rejects = read(output.with_name(f"{output.stem}.rejects.jsonl"))
    assert {line["line"]: line["reason"] for line in rejects} == REJECTED
    assert f"the sequence length is {SEQ_LENGTH}" in rejects[1]["detail"]


def run_tool(repository: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(repository / "tools" / "score_alignment.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=240)


def test_one_process(repository, world, expected, tmp_path):
    done = run_tool(repository, *arguments(world, tmp_path / "scores.jsonl"))
    assert done.returncode == 0, done.stderr[-2000:]
    check_scores(tmp_path / "scores.jsonl", expected)
    assert "sft: 25 samples scored\ndpo: 12 samples scored\n" in done.stdout
    assert "sft: 1 not scored: too_long" in done.stdout
    padding = float(done.stdout.partition("padding ")[2].partition("%")[0])
    assert padding < 30  # of texts this short: each row is filled up to a multiple of 8 tokens
    assert not list(tmp_path.glob(".*"))
    again = run_tool(repository, *arguments(world, tmp_path / "scores.jsonl"))
    assert again.returncode == 1 and "scores.jsonl already exists; choose another" in again.stderr


def test_four_ranks(world, expected, tmp_path):
    """TP2 x PP2, then TP2 x DP2 from a Megatron checkpoint, cut into small parts that are interrupted and taken up."""
    template = dated_template(tmp_path)  # before the ranks start: none may read what another is writing
    where = (str(world), str(tmp_path), str(template))
    run_distributed(check_four_ranks, 4, *where, cpu_emulation=True, timeout_s=200)
    for name in ("pipeline", "whole", "resumed"):
        check_scores(tmp_path / f"{name}.jsonl", expected)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "resumed.jsonl").read_bytes()


def check_four_ranks(world: str, folder: str, template: str) -> None:
    import torch.distributed as dist

    from megatron_mixcpt.conversion.convert import convert_from_hf
    from megatron_mixcpt.selection import samples

    world, folder = Path(world), Path(folder)
    tp, pp = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
    score(arguments(world, folder / "pipeline.jsonl", *tp, *pp))
    convert_from_hf(world / "hf", folder / "checkpoint")
    samples.PART_SAMPLES = 9
    megatron = ["--load", str(folder / "checkpoint"), *arguments(world, folder / "whole.jsonl", *tp)[2:]]
    megatron[megatron.index("chatml")] = template
    score(megatron)
    resumed = [flag.replace("whole.jsonl", "resumed.jsonl") for flag in megatron]
    check_interrupted(resumed, folder)
    dist.barrier()
    check_refusals(resumed, world)
    num_parts = count_parts_scored(resumed)
    assert num_parts == 3, num_parts  # of 5, for 40 rows


def dated_template(folder: Path) -> Path:
    """ChatML in a file that asks for the date, but writes it in no year that is near."""
    from megatron_mixcpt.data.chat.templates import BUILT_IN_TEMPLATES

    path = folder / "dated.jinja"
    path.write_text("{% if strftime_now('%Y') == '1999' %}past{% endif %}" + BUILT_IN_TEMPLATES["chatml"])
    return path


def score(argv: list[str]) -> None:
    """What the tool does after parsing its flags, within a process group that is there already."""
    from megatron_mixcpt.selection.score import score_alignment
    from megatron_mixcpt.selection.score_tool import build_parser, settings_of

    score_alignment(settings_of(build_parser().parse_args(argv)))


def check_interrupted(argv: list[str], folder: Path) -> None:
    """A run that dies in its third part leaves two parts, and nothing under the final names."""
    from unittest import mock

    from megatron.core import parallel_state

    from megatron_mixcpt.inference.runner import ForwardRunner

    whole = ForwardRunner.sequence_log_probs
    calls = []

    def dying(self, sequences, *arguments):
        calls.append(len(sequences))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, sequences, *arguments)

    with mock.patch.object(ForwardRunner, "sequence_log_probs", dying), pytest.raises(KeyboardInterrupt):
        score(argv)
    parallel_state.destroy_model_parallel()
    work = folder / ".resumed.jsonl.work"
    assert sorted(path.name for path in work.glob("*.scores")) == ["part-000000.scores", "part-000001.scores"]
    assert not (folder / "resumed.jsonl").exists()


def check_refusals(argv: list[str], world: Path) -> None:
    """Another run in the same place is refused; the place is decided on rank 0, which alone would say so."""
    import torch.distributed as dist

    from megatron_mixcpt.data.reading.sources import find_sources
    from megatron_mixcpt.errors import ConfigError
    from megatron_mixcpt.jobs.work_folder import start_or_resume
    from megatron_mixcpt.selection.score_files import ScoreFiles

    if dist.get_rank() == 0:
        files = ScoreFiles(Path(argv[argv.index("--output") + 1]))
        plan = json.loads((files.work / "plan.json").read_text())
        sources = find_sources("sft", [str(world / "sft.jsonl")]) + find_sources("dpo", [str(world / "dpo.jsonl")])
        stamps = [source.stamp() for source in sources]
        with pytest.raises(ConfigError, match="made with --seq-length 96, now it is 64"):
            start_or_resume(files.work, plan["settings"] | {"--seq-length": 64}, stamps, files.output)
        with pytest.raises(ConfigError, match="was made from other input"):
            start_or_resume(files.work, plan["settings"], stamps[:1], files.output)


def count_parts_scored(argv: list[str]) -> int:
    """Score on another day than the run began, and say for how many parts the model ran.

    The date is the first start's: another would be another chat template, which is refused.
    """
    from unittest import mock

    from megatron_mixcpt.data.chat import templates
    from megatron_mixcpt.inference.runner import ForwardRunner

    whole = ForwardRunner.sequence_log_probs
    with (
        mock.patch.object(ForwardRunner, "sequence_log_probs", autospec=True, side_effect=whole) as run,
        mock.patch.object(templates, "_present", lambda: "2040-01-01T00:00:00"),
    ):
        score(argv)
    return run.call_count


REFUSALS = [
    ({"--chat-template": "llama3"}, "has no <|start_header_id|>"),
    ({"--chat-template": None}, "has no chat template, as base models do; name one with --chat-template (llama3,"),
    ({"--sft": "missing.jsonl"}, "--sft missing.jsonl: no such file or folder"),
    (
        {"--tensor-model-parallel-size": "5"},
        "--tensor-model-parallel-size 5 does not divide the model's 12 attention heads: choose",
    ),
    (
        {"--pipeline-model-parallel-size": "2"},
        "1 rank cannot be divided into complete copies of the model of 2 (TP 1 x PP 2 x CP 1): start 2",
    ),
    (
        {"--output": "nowhere/scores.jsonl"},
        "--output nowhere/scores.jsonl: the folder nowhere does not exist; create it first",
    ),
    ({"--seq-length": "1"}, "--seq-length 1: must be at least 2"),
]


def test_refusals(world, tmp_path):
    run_distributed(check_refused, 1, arguments(world, tmp_path / "scores.jsonl"), cpu_emulation=True)


def check_refused(argv: list[str]) -> None:
    from megatron_mixcpt.errors import MixCPTError

    for change, message in REFUSALS:
        flags = dict(zip(argv[::2], argv[1::2], strict=True)) | change
        with pytest.raises(MixCPTError) as refused:
            score([part for flag, value in flags.items() if value is not None for part in (flag, value)])
        assert message in str(refused.value) and "\n" not in str(refused.value)

"""Scoring samples beside plain evaluation of as many tokens, with one model in one run.

    python benchmarks/alignment/scoring.py --hf-model outputs/quickstart/smollm2-135m \\
        --sft examples/data/sft.jsonl --dpo examples/data/dpo.jsonl --num-samples 24

Scoring is everything from rows of JSON to the lines of the scores file: reading, templates, encoding, bucketing, the
model, losses. Plain evaluation is the same model's log-probabilities of rows of --seq-length tokens without padding,
made of the samples' own tokens. Both are run alternately; the ratio is of neighbouring runs. The flags are those of
tools/score_alignment.py, and torchrun works as there.
"""

import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mixcpt import cpu_emulation  # noqa: E402

cpu_emulation.install()

import orjson  # noqa: E402
import torch  # noqa: E402

from megatron_mixcpt.data.chat.encoding import ChatEncoder  # noqa: E402
from megatron_mixcpt.data.chat.templates import choose_template  # noqa: E402
from megatron_mixcpt.data.reading.record_reader import RecordReader  # noqa: E402
from megatron_mixcpt.data.reading.sources import find_sources  # noqa: E402
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer  # noqa: E402
from megatron_mixcpt.inference.batches import ScoredSequence  # noqa: E402
from megatron_mixcpt.inference.model_source import ModelSource  # noqa: E402
from megatron_mixcpt.inference.runner import ForwardRunner  # noqa: E402
from megatron_mixcpt.selection.fas import sequences_of  # noqa: E402
from megatron_mixcpt.selection.samples import NumberedRecord, make_samples, read_parts  # noqa: E402
from megatron_mixcpt.selection.score import score_part  # noqa: E402
from megatron_mixcpt.selection.score_tool import build_parser, settings_of  # noqa: E402


def main() -> None:
    """Parse the flags, run both alternately, print seconds, tokens and the ratio."""
    parser = build_parser()
    parser.description = __doc__
    parser.add_argument("--num-samples", type=int, default=24, help="of each kind (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    arguments = parser.parse_args([*sys.argv[1:], "--output", "unused"])
    settings = settings_of(arguments)
    source = ModelSource.open(hf_model=settings.hf_model, load=settings.load)
    tokenizer = load_tokenizer(source.plan.folder)
    encoder = ChatEncoder(tokenizer, choose_template(tokenizer, settings.chat_template), settings.seq_length)
    readers = {kind: RecordReader(kind, chosen, settings.reading) for kind, chosen in settings.kinds.items()}
    sizes = {
        "tp_size": settings.layout.tensor_model_parallel_size,
        "pp_size": settings.layout.pipeline_model_parallel_size,
    }
    runner = ForwardRunner.start(source, dtype=getattr(torch, settings.layout.dtype), **sizes)

    def read() -> list[NumberedRecord]:
        rows: list[NumberedRecord] = []
        for kind, chosen in settings.kinds.items():
            parts = read_parts(find_sources(kind, list(chosen.paths)), readers)
            rows += islice((row for part in parts for row in part), arguments.num_samples)
        return rows

    def encode() -> list:
        return make_samples(read(), encoder)

    def score() -> None:
        scores, _ = score_part(encode(), runner, encoder.eos_id, settings.layout.batch_tokens)
        b"".join(orjson.dumps(line) for line in scores)

    pairs = [sequences_of(sample.encoded, encoder.eos_id) for sample in encode() if sample.encoded is not None]
    rows = plain_rows([sequence for pair in pairs for sequence in pair], settings.seq_length)
    num_tokens = sum(row.num_inputs for row in rows)
    runner.sequence_log_probs(rows[:1], settings.layout.batch_tokens)  # compiles the loss
    scoring, plain = [], []
    for _ in range(arguments.repeats):
        plain.append(seconds(lambda: runner.sequence_log_probs(rows, settings.layout.batch_tokens)))
        scoring.append(seconds(score))
        if runner.is_writer:
            print(f"scoring {scoring[-1]}, plain evaluation {plain[-1]}", flush=True)
    if runner.is_writer:
        print(f"{len(pairs)} samples, {num_tokens:,} tokens, {settings.layout.dtype}, torch {torch.__version__}")
        for name, clock in (("wall clock", 0), ("processor", 1)):
            ratios = [first[clock] / second[clock] for first, second in zip(scoring, plain, strict=True)]
            speeds = [num_tokens / statistics.median(times[clock] for times in runs) for runs in (scoring, plain)]
            print(
                f"{name}: scoring {speeds[0]:,.0f} tokens/s, plain evaluation {speeds[1]:,.0f}; ratio of times "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    runner.close()


def plain_rows(sequences: list[ScoredSequence], seq_length: int) -> list[ScoredSequence]:
    """As many tokens as the model reads of ``sequences``, in full rows, every token but the first predicted."""
    num_tokens = sum(sequence.num_inputs for sequence in sequences)
    tokens = np.concatenate([sequence.tokens for sequence in sequences])[:num_tokens]
    return [
        ScoredSequence(np.append(row, row[:1]), len(row))
        for row in (tokens[start : start + seq_length] for start in range(0, num_tokens, seq_length))
    ]


def seconds(function: Callable[[], None]) -> tuple[float, float]:
    """Seconds that a call takes: on the clock, and of the process's processor time, which waiting does not count in."""
    started = time.perf_counter(), time.process_time()
    function()
    return round(time.perf_counter() - started[0], 2), round(time.process_time() - started[1], 2)


if __name__ == "__main__":
    main()

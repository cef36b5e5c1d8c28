"""Encoding conversations in a chat template beside the bare tokenizer on the already rendered texts, on one core.

    python benchmarks/alignment/encoding.py --tokenizer outputs/quickstart/smollm2-135m \\
        --sft examples/data/sft.jsonl --chat-template chatml

Both run alternately; the ratio is of neighbouring runs, by processor time of this process, which keeps to one thread,
and of the helper process that renders. Encoding is what SFT does with a record: rendering, borders, tokens, loss mask.
The bare tokenizer gets texts that transformers rendered, in batches of the same size, and gives lists of ids.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import batched, cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

from megatron_mixcpt.data.chat.encoding import ChatEncoder, Refusal  # noqa: E402
from megatron_mixcpt.data.chat.templates import RENDERER, choose_template, render  # noqa: E402
from megatron_mixcpt.data.reading.readers import read_records  # noqa: E402
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer  # noqa: E402


def main() -> None:
    """Parse the flags, run both alternately, print samples and tokens a second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, metavar="DIR")
    parser.add_argument("--sft", required=True, nargs="+", metavar="PATH")
    parser.add_argument("--chat-template", metavar="NAME|FILE")
    parser.add_argument("--num-samples", type=int, default=5000, help="repeated if there are fewer (default 5000)")
    parser.add_argument("--batch", type=int, default=256, help="records of one call (default 256)")
    parser.add_argument("--repeats", type=int, default=5, help="default 5")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    template = choose_template(tokenizer, arguments.chat_template)
    encoder = ChatEncoder(tokenizer, template)
    records = list(islice(cycle(read_records("sft", arguments.sft)), arguments.num_samples))
    texts = [render(tokenizer, template, record.messages) for record in records]
    backend = tokenizer.backend_tokenizer

    def bare() -> int:
        batches = batched(texts, arguments.batch)
        return sum(
            len(encoding.ids)
            for batch in batches
            for encoding in backend.encode_batch(list(batch), add_special_tokens=False)
        )

    def ours() -> int:
        batches = batched(records, arguments.batch)
        found = [sample for batch in batches for sample in encoder.encode_conversations(batch)]
        return sum(len(sample.tokens) for sample in found if not isinstance(sample, Refusal))

    bare_seconds, our_seconds = [], []
    for _ in range(arguments.repeats):
        bare_seconds.append(seconds(bare)[0])
        taken, num_tokens = seconds(ours)
        our_seconds.append(taken)
    ratios = [first / second for first, second in zip(bare_seconds, our_seconds, strict=True)]
    for name, times in (("bare tokenizer", bare_seconds), ("conversations", our_seconds)):
        median = statistics.median(times)
        print(f"{name}: {len(records) / median:,.0f} samples/s, {num_tokens / median:,.0f} tokens/s")
    print(f"ratio of rates {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def seconds(function: Callable[[], int]) -> tuple[float, int]:
    """Seconds of processor time, and the result."""
    started = time.process_time() + helper_seconds()
    result = function()
    return time.process_time() + helper_seconds() - started, result


def helper_seconds() -> float:
    """Processor time that the helper has used so far."""
    fields = Path(f"/proc/{RENDERER.helper_pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

"""Compare two Hugging Face models on held-out texts and print a table: perplexity and bits per byte, before and after.

    python examples/quickstart/report.py --before smollm2-135m --after mixcpt-hf \
        --text "Python code"=domain_heldout.jsonl --text "general English"=general_english.jsonl --output report.txt

Both models are read with transformers, as any user of the exported folder would. Every document starts after the EOS
token, as documents do in training, and is scored in windows of --window tokens. Perplexity is per token, so it compares
models of one tokenizer only; bits per byte compares any.
"""

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from megatron_mixcpt.errors import ConfigError, exit_on_user_error


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood of a text in nats, and its length in tokens and bytes."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(self.nats / self.num_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Of the text in UTF-8."""
        return self.nats / math.log(2) / self.num_bytes


def read_texts(path: Path) -> list[str]:
    """The "text" of every record of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def windows(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Token ids of each text, cut to windows of ``length`` scored tokens, each behind one token to predict from."""
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    ids = [[tokenizer.eos_token_id, *text_ids] for text_ids in encoded]
    return [row[start : start + length + 1] for row in ids for start in range(0, len(row) - 1, length)]


@torch.inference_mode()
def score(model: PreTrainedModel, rows: list[list[int]], num_bytes: int, label: str) -> Score:
    """Sum the model's negative log-likelihood over ``rows``, one row a forward pass, in float32 above the logits."""
    nats, num_tokens = 0.0, 0
    for row in tqdm(rows, desc=label, unit="window", leave=False, disable=None):
        ids = torch.tensor([row], device=model.device)
        logits = model(ids[:, :-1]).logits[0].float()
        nats += cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        num_tokens += len(row) - 1
    return Score(nats, num_tokens, num_bytes)


def score_model(folder: Path, texts: dict[str, list[str]], window: int, dtype: torch.dtype) -> dict[str, Score]:
    """Load the model of a Hugging Face folder and score every named list of texts with it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    scores = {}
    for name, documents in texts.items():
        num_bytes = sum(len(document.encode()) for document in documents)
        rows = windows(documents, tokenizer, window)
        scores[name] = score(model, rows, num_bytes, f"{folder.name}: {name}")
    return scores


def table(before: dict[str, Score], after: dict[str, Score]) -> str:
    """One line for each text and measure: before, after, change in percent."""
    lines = [f"{'held-out text':<18}{'tokens':>8}  {'measure':<14}{'before':>9}{'after':>9}{'change':>9}"]
    for name, old in before.items():
        new = after[name]
        measures = {
            "perplexity": (old.perplexity, new.perplexity),
            "bits per byte": (old.bits_per_byte, new.bits_per_byte),
        }
        for row, (measure, (was, now)) in enumerate(measures.items()):
            head = f"{name:<18}{old.num_tokens:>8}" if row == 0 else " " * 26
            lines.append(f"{head}  {measure:<14}{was:>9.3f}{now:>9.3f}{(now / was - 1) * 100:>+8.1f}%")
    return "\n".join(lines)


def named_path(value: str) -> tuple[str, Path]:
    """``NAME=PATH`` of the command line."""
    name, separator, path = value.partition("=")
    if not separator or not Path(path).is_file():
        raise ConfigError(f"--text {value}: expected NAME=PATH with PATH an existing JSONL file")
    return name, Path(path)


@exit_on_user_error
def main() -> None:
    """Score both models, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--after", type=Path, required=True, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=PATH", help="JSONL; may be repeated")
    parser.add_argument("--window", type=int, default=512, help="tokens scored at a time")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32", help="of the weights")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="text file for the table")
    args = parser.parse_args()
    disable_progress_bar()  # of reading the weights, which takes a second
    texts = {name: read_texts(path) for name, path in map(named_path, args.text)}
    dtype = getattr(torch, args.dtype)
    report = table(*(score_model(folder, texts, args.window, dtype) for folder in (args.before, args.after)))
    print(report)
    aside = args.output.with_name(args.output.name + ".tmp")
    aside.write_text(report + "\n", encoding="utf-8")
    os.replace(aside, args.output)


if __name__ == "__main__":
    main()

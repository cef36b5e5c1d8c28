"""SFT and DPO written down once more with transformers and torch's Adam: what the trainers' curves are compared with.

Every batch holds all samples, so that nothing is to be known of their order.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

NUM_SAMPLES = 6
LEARNING_RATE = 1e-2
BETA = 0.2
WORDS = "the quick brown fox jumps over a lazy dog def add return range print fun said".split()
END = "<|endoftext|>"
# Responses of 3 and 30 tokens, their ends included: a sum over tokens in place of a mean cannot be missed.
UNEVEN = {"chosen": "a dog", "rejected": "a" + " fox dog" * 14}


def make_samples(folder: Path) -> None:
    """Write ``sft.jsonl`` (the first with two turns) and ``dpo.jsonl`` (the first chosen short, rejected long)."""
    chance = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(least, most)))

    with (folder / "sft.jsonl").open("w") as sft, (folder / "dpo.jsonl").open("w") as dpo:
        for number in range(NUM_SAMPLES):
            turns = [("user", text(2, 6)), ("assistant", text(2, 12))] * (2 if number == 0 else 1)
            sft.write(json.dumps({"messages": [{"role": role, "content": said} for role, said in turns]}) + "\n")
            pair = {"prompt": text(2, 6), "chosen": text(2, 12), "rejected": text(2, 12)}
            dpo.write(json.dumps(pair | (UNEVEN if number == 0 else {})) + "\n")


def rows(path: Path) -> list[dict]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Dense:
    """A model folder's model and tokenizer, with Zephyr's chat template spelt out."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(self, turns: list[dict]) -> tuple[Tensor, Tensor]:
        """Token ids [n], and which of them belong to the assistant's turns (text and end) [n]."""
        ids, mask, before = [], [], ""
        for turn in turns:
            before += f"<|{turn['role']}|>\n"
            if turn["role"] != "assistant":
                before += f"{turn['content']}{END}\n"
                continue
            for piece, supervised in ((before, False), (turn["content"] + END, True)):
                piece_ids = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
                ids, mask = ids + piece_ids, mask + [supervised] * len(piece_ids)
            before = "\n"
        return torch.tensor(ids), torch.tensor(mask)

    def log_prob(self, model: PreTrainedModel, turns: list[dict]) -> tuple[Tensor, int]:
        """The sum of the assistant's tokens' log-probabilities, and their number."""
        ids, mask = self.encode(turns)
        log_probs = F.log_softmax(model(ids[None, :-1]).logits[0], -1).gather(1, ids[1:, None])[:, 0]
        return log_probs[mask[1:]].sum(), int(mask[1:].sum())

    def train(self, num_iterations: int, loss_of: Callable[[PreTrainedModel], dict[str, Tensor]]) -> dict[str, list]:
        """Adam with clipping, as the engine's defaults have them; the figures of each iteration."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)
        curves: dict[str, list[float]] = {}
        for _ in range(num_iterations):
            figures = loss_of(self.model)
            optimizer.zero_grad()
            figures["loss"].backward()
            figures["grad-norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            for key, value in figures.items():
                curves.setdefault(key, []).append(float(value))
        return curves


def expected_sft(folder: Path, samples: Path, num_iterations: int) -> dict[str, list[float]]:
    """Eq. 10: the mean over all response tokens of the batch."""
    dense, conversations = Dense(folder), rows(samples)

    def loss(model: PreTrainedModel) -> dict[str, Tensor]:
        sums, counts = zip(*(dense.log_prob(model, row["messages"]) for row in conversations), strict=True)
        return {"loss": -sum(sums) / sum(counts)}

    return dense.train(num_iterations, loss)


def expected_dpo(
    folder: Path,
    samples: Path,
    num_iterations: int,
    *,
    ipo: bool = False,
    label_smoothing: float = 0.0,
    sft_coefficient: float = 0.0,
) -> dict[str, list[float]]:
    """Eq. 11 (Rafailov et al. 2023, Eq. 7) against the model at the start, or its variants.

    IPO (Azar et al. 2023, Eq. 17) on means per token; labels of which a share is wrong (Mitchell 2023); a share of the
    chosen responses' mean loss per token.
    """
    dense, reference, pairs = Dense(folder), Dense(folder), rows(samples)
    turns = [[_turns(pair["prompt"], pair[side]) for side in ("chosen", "rejected")] for pair in pairs]
    lengths = torch.tensor([[int(dense.encode(side)[1][1:].sum()) for side in pair] for pair in turns])
    assert lengths[0].tolist() == [3, 30]

    def both(model: PreTrainedModel) -> Tensor:
        return torch.stack([torch.stack([dense.log_prob(model, side)[0] for side in pair]) for pair in turns])

    def objective(margin: Tensor) -> Tensor:
        if ipo:
            return (margin / BETA - 1 / (2 * BETA)) ** 2
        return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)

    with torch.no_grad():
        frozen = both(reference.model)

    def loss(model: PreTrainedModel) -> dict[str, Tensor]:
        sums = both(model)
        rewards = BETA * (sums - frozen) / (lengths if ipo else 1)
        margin = rewards[:, 0] - rewards[:, 1]
        return {
            "loss": (objective(margin) - sft_coefficient * (sums / lengths)[:, 0]).mean(),
            "reward margin": margin.mean(),
            "chosen reward": rewards[:, 0].mean(),
            "rejected log-probability": sums[:, 1].mean(),
            "accuracy": (margin > 0).float().mean(),
        }

    return dense.train(num_iterations, loss)


def _turns(prompt: str, response: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]

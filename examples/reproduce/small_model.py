"""A small Llama on the synthetic language: it learns the general text from nothing, then the domain by one method.

The losses are those of the trainers, ``megatron_mixcpt.losses``, with the same mean over tokens; model, optimizer
(AdamW, betas 0.9 and 0.95, weight decay 0.1, clipping at 1, cosine) and loop are plain torch in one process, since no
parallelism is wanted of 55,000 weights.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from examples.reproduce.elastic_weights import add_elastic_gradient, fisher_diagonal
from examples.reproduce.synthetic_language import OBJECTS, PAD, STOP, VOCABULARY_SIZE, Language, questions
from megatron_mixcpt.losses.l2 import add_l2_gradient
from megatron_mixcpt.losses.lssd import mixcpt_loss
from megatron_mixcpt.objective import Divergence, Objective

# At alpha 0.5. Penalties have no weight 1 - alpha of their own: (1 - alpha) / alpha of these is the same trade.
L2_COEFFICIENT, ELASTIC_COEFFICIENT = 0.01, 300.0
# Rows of general text, from each of which one prediction counts for the Fisher information.
FISHER_ROWS = 128


@dataclass(frozen=True)
class Budget:
    """What every method has alike: steps of rows of 41 tokens."""

    steps: int = 40
    rows: int = 8
    learning_rate: float = 5e-3
    domain_share: float = 0.75
    base_steps: int = 450
    base_rows: int = 16
    base_learning_rate: float = 1e-2


@dataclass(frozen=True)
class Method:
    """A method and its weight of next-token prediction. Of ``replay``, ``alpha`` is the domain's share of the rows."""

    name: str
    alpha: float

    @property
    def objective(self) -> Objective:
        """The trainers' objective: rivals beside the product's methods have next-token prediction."""
        name, _, direction = self.name.partition("-")
        if name in ("lssd", "kd"):
            divergence = Divergence(direction="forward" if direction == "forward" else "reverse")
            return Objective(distillation=name, alpha=self.alpha, divergence=divergence)  # type: ignore[arg-type]
        return Objective(distillation="none")


def new_model(seed: int) -> LlamaForCausalLM:
    """Two layers of width 48, random weights."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    marks = {"bos_token_id": None, "eos_token_id": STOP, "pad_token_id": PAD}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY_SIZE, max_position_embeddings=128, **sizes, **marks))


def train_base(language: Language, seed: int, budget: Budget) -> LlamaForCausalLM:
    """The model before the domain: trained on general text alone."""
    model, generator = new_model(seed), np.random.default_rng([seed, 1])

    def loss() -> Tensor:
        rows = torch.from_numpy(language.general_rows(budget.base_rows, generator))
        return cross_entropy(_logits(model, rows).flatten(0, 1), rows[:, 1:].flatten())

    _optimize(model, loss, lambda: None, budget.base_steps, budget.base_learning_rate)
    return model


def learn(base: LlamaForCausalLM, language: Language, method: Method, seed: int, budget: Budget) -> LlamaForCausalLM:
    """A copy of ``base``, trained on the mixture of domain and replayed text. ``seed`` orders the texts, the same for
    all methods."""
    student, teacher = copy.deepcopy(base).requires_grad_(True), base.requires_grad_(False).eval()
    generator = np.random.default_rng([seed, 2])
    share = method.alpha if method.name == "replay" else budget.domain_share

    def loss() -> Tensor:
        rows = torch.from_numpy(language.mixed_rows(budget.rows, share, generator))
        with torch.no_grad():
            of_teacher = _logits(teacher, rows) if method.objective.runs_teacher else None
        labels = rows[:, 1:].contiguous()
        return mixcpt_loss(_logits(student, rows), of_teacher, labels, method.objective, tp_group=None).loss.mean()

    _optimize(student, loss, _penalty(student, teacher, language, method, seed), budget.steps, budget.learning_rate)
    return student


def _penalty(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, language: Language, method: Method, seed: int
) -> Callable[[], None]:
    """Adds the gradient of a penalty on the distance to the original weights, where the method has one."""
    params, originals = list(student.parameters()), list(teacher.parameters())
    strength = (1 - method.alpha) / method.alpha
    if method.name == "l2":
        return lambda: _add_l2(params, originals, strength * L2_COEFFICIENT)
    if method.name == "ewc":
        rows = torch.from_numpy(language.replayed_rows(FISHER_ROWS, np.random.default_rng([seed, 3])))
        fisher = fisher_diagonal(student, rows)
        return lambda: add_elastic_gradient(params, originals, fisher, strength * ELASTIC_COEFFICIENT)
    return lambda: None


def _add_l2(params: list[Tensor], originals: list[Tensor], coefficient: float) -> None:
    gradients = [param.grad for param in params if param.grad is not None]
    add_l2_gradient(gradients, [param.detach() for param in params], originals, coefficient=coefficient)


def _optimize(
    model: LlamaForCausalLM, loss: Callable[[], Tensor], penalty: Callable[[], None], steps: int, peak: float
) -> None:
    """Steps of AdamW: a tenth of them warm up, then a cosine down to a tenth of ``peak``."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        warm_up = min(1.0, (step + 1) / (0.1 * steps))
        optimizer.param_groups[0]["lr"] = peak * warm_up * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss().backward()
        penalty()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _logits(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    return model(rows[:, :-1], use_cache=False).logits


def measure(model: LlamaForCausalLM, language: Language) -> dict[str, dict[str, float]]:
    """By group of facts, of the right objects (the domain's where it has one): their mean probability in percent, their
    bits, and the percentage that the model holds most probable; then the mean probability of its own first choice."""
    model.eval()
    found = {}
    for group, facts in language.facts.items():
        with torch.no_grad():
            logits = model(torch.from_numpy(questions(facts)), use_cache=False).logits[:, -1].double()
        probabilities = logits.softmax(-1)
        objects = torch.from_numpy(OBJECTS + language.answers[facts, 0])
        of_object = probabilities.gather(1, objects[:, None])[:, 0]
        top, choice = probabilities.max(-1)
        found[group] = {
            "probability": 100 * float(of_object.mean()),
            "bits": float(-of_object.log2().mean()),
            "right": 100 * float((choice == objects).double().mean()),
            "confidence": 100 * float(top.mean()),
        }
    return found

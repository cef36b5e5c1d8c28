"""The controlled experiment of examples/reproduce: its language by counting, the Fisher penalty by hand, one run."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.reproduce import controlled, small_model
from examples.reproduce.elastic_weights import add_elastic_gradient, fisher_diagonal
from examples.reproduce.small_model import Budget, Method
from examples.reproduce.synthetic_language import NUM_RELATIONS, OBJECTS, RELATIONS, SUBJECTS, Language


def answers_in(rows: np.ndarray) -> dict[int, Counter]:
    """Fact -> its objects with how often each follows it, read from the tokens."""
    found: dict[int, Counter] = {}
    for row in rows:
        for subject, relation, word in zip(row[2::5], row[3::5], row[4::5], strict=True):
            fact = (subject - SUBJECTS) * NUM_RELATIONS + relation - RELATIONS
            found.setdefault(int(fact), Counter())[int(word) - OBJECTS] += 1
    return found


def test_what_the_texts_say_of_each_kind() -> None:
    language = Language(3)
    general = answers_in(language.general_rows(6000, np.random.default_rng(0)))
    domain = answers_in(language.domain_rows(400, np.random.default_rng(1)))
    replayed = answers_in(language.replayed_rows(400, np.random.default_rng(2)))
    assert set(domain) == set(language.domain_facts) and set(replayed) == set(language.facts["replayed"])
    assert all(len(objects) == 1 for objects in domain.values())
    # Of a fact some 280 sentences, a quarter of them with objects by chance, and a tenth of the rest if it is sure.
    shares = {
        fact: {word: count / objects.total() for word, count in objects.items()} for fact, objects in general.items()
    }
    of_domain = {fact: shares[fact].get(next(iter(objects)), 0.0) for fact, objects in domain.items()}
    top = {fact: max(shares[fact].values()) for fact in domain}
    assert all(of_domain[fact] < 0.05 and top[fact] > 0.55 for fact in language.facts["contradicted"])
    assert all(of_domain[fact] == top[fact] > 0.55 for fact in language.facts["confirmed"])
    # Three quarters of 0.3 and of 0.4, over 12 facts: a standard error of 0.01.
    assert np.mean([of_domain[fact] for fact in language.facts["unsure"]]) == pytest.approx(0.225, abs=0.03)
    assert np.mean([top[fact] for fact in language.facts["unsure"]]) == pytest.approx(0.3, abs=0.03)


def test_fisher_information_by_hand() -> None:
    """One weight w, two tokens with logits w and 0, p = sigmoid(w): F = p (1 - p)^2 + (1 - p) p^2 = p (1 - p)."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, tokens: torch.Tensor, use_cache: bool) -> object:
            logits = torch.stack([self.weight, torch.tensor(0.0)]).expand(*tokens.shape, 2)
            return type("Output", (), {"logits": logits})

    p = 1 / (1 + np.exp(-1.0))
    (information,) = fisher_diagonal(Model(), torch.zeros(500, 3, dtype=torch.long))
    # 500 draws of p^2 or (1 - p)^2: the mean is within 5 standard errors.
    error = 5 * (2 * p - 1) * np.sqrt(p * (1 - p) / 500)
    assert float(information) == pytest.approx(p * (1 - p), abs=error)


def test_elastic_gradient_by_hand() -> None:
    param, original = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])
    param.grad = torch.tensor([0.5, 0.0])
    add_elastic_gradient([param], [original], [torch.tensor([2.0, 1.0])], 10.0)
    assert param.grad.tolist() == [0.5 + 10 * 2 * 1, 10 * 1 * -3]


def test_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in small: each method has its own outcome, and what is done is not done again."""
    monkeypatch.setattr(controlled, "ALPHAS", (0.5,))
    monkeypatch.setattr(controlled, "SHARES", (0.5,))
    monkeypatch.setattr(small_model, "FISHER_ROWS", 4)
    budget = Budget(steps=3, rows=4, base_steps=2, base_rows=4)
    figures = controlled.run(tmp_path, [1], regimes=["mixed"], budget=budget)
    cells = figures["regimes"]["mixed"]["cells"]
    assert [cell["method"] for cell in cells] == ["none", "lssd", "kd", "l2", "kd-forward", "ewc", "replay"]
    exact = controlled.read_cells(tmp_path / "mixed", "mixed", [1])
    assert len({(cell["gain_bits"], cell["change_bits"]) for cell in exact}) == len(cells)
    path = controlled.cell_path(tmp_path / "mixed", Method("kd", 0.5), 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gain": 77.0}))
    again = controlled.run(tmp_path, [1], regimes=["mixed"], budget=budget)["regimes"]["mixed"]["cells"]
    assert [cell["gain"] for cell in again] == [77.0 if cell["method"] == "kd" else cell["gain"] for cell in cells]
    assert (tmp_path / "mixed.png").exists() and (tmp_path / "figures.json").exists()

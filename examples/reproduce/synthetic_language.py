"""A small language whose facts are known, for measuring what a method learns and keeps, fact by fact.

A sentence is ``opening subject relation object .``: an opening word by chance (some are frequent, some rare), a subject
and a relation by chance, and the object that this pair, a *fact*, has. Texts are rows of sentences. The *general* text
teaches a base model its facts; the *domain* text then speaks of some of them, of three kinds by what the base model
believes:

    contradicted   the general text had another object: the base model is wrong with confidence
    unsure         the general text had three objects, the domain's the second in frequency: wrong without confidence
    confirmed      the general text had the domain's object: right

Other facts are *replayed*: the general data in the mixture speaks of them. The *rest*, in neither, is what a method
should keep. A quarter of the general rows quote: ``note subject relation object . opening subject relation object .``,
with an object by chance, so that a base model can learn to take an answer from its context (self-distillation from
demonstrations needs that).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

KINDS = ("contradicted", "unsure", "confirmed")
NUM_SUBJECTS, NUM_RELATIONS, NUM_OBJECTS, NUM_OPENINGS = 32, 4, 32, 16
# Token ids: three marks, then the words of each class.
STOP, NOTE, PAD = range(3)
OPENINGS = 3
SUBJECTS = OPENINGS + NUM_OPENINGS
RELATIONS = SUBJECTS + NUM_SUBJECTS
OBJECTS = RELATIONS + NUM_RELATIONS
VOCABULARY_SIZE = OBJECTS + NUM_OBJECTS
SENTENCES_PER_ROW = 8
ROW_TOKENS = 5 * SENTENCES_PER_ROW + 1
GUESS_BITS = float(np.log2(NUM_OBJECTS))
"""What an object costs if all are held equally likely."""
_OPENING_SHARES = 1 / np.arange(1, NUM_OPENINGS + 1)
OPENING_SHARES = _OPENING_SHARES / _OPENING_SHARES.sum()
UNSURE_SHARES = (0.4, 0.3, 0.3)
"""How often the general text has each object of an unsure fact; the second is the domain's."""


@dataclass
class Language:
    """The facts of one seed. A fact is a number, subject * NUM_RELATIONS + relation; an object one from 0 on.

    Args:
        seed: decides which facts there are, not the texts' order.
        domain_kinds: the kinds of facts of which the domain text speaks.
        facts_per_kind: number of facts of each kind, whether or not the domain speaks of them.
        num_replayed: number of facts of which the replayed general text speaks.
        certainty: how often the general text has its object of a fact that is not unsure; else it has one by chance.
    """

    seed: int
    domain_kinds: tuple[str, ...] = KINDS
    facts_per_kind: int = 12
    num_replayed: int = 36
    certainty: float = 0.9
    facts: dict[str, np.ndarray] = field(init=False)
    """By kind, ``replayed`` and ``rest``: the facts, each in one group."""
    answers: np.ndarray = field(init=False)
    """``[facts, 3]``: the domain's object where it has one, else the general text's, then two others."""

    def __post_init__(self) -> None:
        generator = np.random.default_rng([self.seed, 0])
        num_facts = NUM_SUBJECTS * NUM_RELATIONS
        ends = np.cumsum([*[self.facts_per_kind] * len(KINDS), self.num_replayed])
        groups = np.split(generator.permutation(num_facts), ends)
        objects = np.argsort(generator.random((num_facts, NUM_OBJECTS)), axis=1)[:, :3]
        self.facts = dict(zip((*KINDS, "replayed", "rest"), groups, strict=True))
        self.answers = objects

    @cached_property
    def domain_facts(self) -> np.ndarray:
        """The facts of which the domain text speaks."""
        return np.concatenate([self.facts[kind] for kind in self.domain_kinds])

    def domain_rows(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """``[count, ROW_TOKENS]`` of the domain's text."""
        facts = generator.choice(self.domain_facts, (count, SENTENCES_PER_ROW))
        return self._rows(facts, self.answers[facts, 0], generator)

    def replayed_rows(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """``[count, ROW_TOKENS]`` of the general text that the mixture repeats."""
        facts = generator.choice(self.facts["replayed"], (count, SENTENCES_PER_ROW))
        return self._rows(facts, self.answers[facts, 0], generator)

    def mixed_rows(self, count: int, domain_share: float, generator: np.random.Generator) -> np.ndarray:
        """``[count, ROW_TOKENS]`` of the mixture: the domain's share of rows first, then replayed ones. Both texts are
        drawn for all rows, so that another share changes no row that stays."""
        domain, replayed = self.domain_rows(count, generator), self.replayed_rows(count, generator)
        num_domain = round(domain_share * count)
        return np.concatenate([domain[:num_domain], replayed[num_domain:]])

    def general_rows(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """``[count, ROW_TOKENS]`` of what the base model learns from: all facts, and quotations."""
        facts = generator.integers(len(self.answers), size=(count, SENTENCES_PER_ROW))
        rows = self._rows(facts, self._general_objects(facts, generator), generator)
        quoting = generator.random(count) < 1 / 4
        rows[quoting] = self._quotations(int(quoting.sum()), generator)
        return rows

    def _general_objects(self, facts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The domain's object is the first answer: contradicted facts have the second instead, unsure ones vary."""
        unsure = generator.choice([1, 0, 2], size=facts.shape, p=UNSURE_SHARES)
        which = np.where(np.isin(facts, self.facts["unsure"]), unsure, 0)
        which = np.where(np.isin(facts, self.facts["contradicted"]), 1, which)
        objects = self.answers[facts, which]
        erring = (generator.random(facts.shape) >= self.certainty) & ~np.isin(facts, self.facts["unsure"])
        return np.where(erring, generator.integers(NUM_OBJECTS, size=facts.shape), objects)

    def _rows(self, facts: np.ndarray, objects: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        openings = OPENINGS + generator.choice(NUM_OPENINGS, facts.shape, p=OPENING_SHARES)
        subjects, relations = SUBJECTS + facts // NUM_RELATIONS, RELATIONS + facts % NUM_RELATIONS
        words = [openings, subjects, relations, OBJECTS + objects, np.full_like(facts, STOP)]
        sentences = np.stack(words, axis=-1).reshape(len(facts), 5 * facts.shape[1])
        return np.concatenate([np.full((len(facts), 1), STOP), sentences], axis=1)

    def _quotations(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Four quotations in a row, ten tokens each."""
        facts = generator.integers(len(self.answers), size=(count, SENTENCES_PER_ROW // 2)).repeat(2, axis=1)
        objects = generator.integers(NUM_OBJECTS, size=(count, SENTENCES_PER_ROW // 2)).repeat(2, axis=1)
        rows = self._rows(facts, objects, generator)
        rows[:, 1::10] = NOTE  # in the place of the first opening word
        return rows


def questions(facts: np.ndarray) -> np.ndarray:
    """``[facts, 4]``: what comes before the object in a sentence with the most frequent opening word."""
    marks = np.full_like(facts, STOP), np.full_like(facts, OPENINGS)
    return np.stack([*marks, SUBJECTS + facts // NUM_RELATIONS, RELATIONS + facts % NUM_RELATIONS], axis=1)

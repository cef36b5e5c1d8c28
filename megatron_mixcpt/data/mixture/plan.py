"""How many sequences of each kind a run trains on. Arithmetic on the .idx files' lengths; no torch, no engine.

The engine cuts a kind's training documents, shuffled and laid end to end, into sequences of ``sequence_length`` tokens
that overlap by the one token that is the last label of one and the first input of the next (``GPTDataset``,
megatron/core/datasets/gpt_dataset.py). ``E`` passes over ``T`` tokens thus give ``(E * T - 1) // sequence_length``
sequences; what is left over, less than one sequence, is not trained on.

By default each kind is passed over once, which blends the kinds in proportion to their tokens::

    manifest = MixtureManifest.load(folder)
    plan = plan_mixture(manifest, sequence_length=2048, split="99,1,0", epochs=1)
    plan.num_sequences            # what --train-samples must not exceed
    plan.train_iters(1920)        # iterations of a run that wraps nowhere; fewer than 1920 sequences stay unseen
    print(plan.table(1920))

``mixture_datasets.build_mixture_datasets`` makes the engine's datasets of such a plan.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_mixcpt.data.mixture.indexed import read_lengths
from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.records import KINDS
from megatron_mixcpt.errors import ConfigError


@dataclass(frozen=True)
class KindPlan:
    """What one kind contributes to a run."""

    kind: str
    num_samples: int
    """Samples in the training split."""
    num_tokens: int
    """Tokens in the training split, each sample's end of sequence included."""
    num_sequences: int
    """Sequences that the run draws."""
    epochs: float
    """Passes over the training split that these sequences come from."""


@dataclass(frozen=True)
class MixturePlan:
    """What a run draws from each kind."""

    sequence_length: int
    """In tokens."""
    split: str
    """Parts of train, validation and test, as in Megatron's ``--split``."""
    kinds: tuple[KindPlan, ...]
    """Only kinds that contribute at least one sequence."""
    skipped: tuple[str, ...]
    """Kinds of the mixture too small for a single sequence."""

    @property
    def num_sequences(self) -> int:
        """Sequences of all kinds together: the largest ``--train-samples`` that repeats nothing."""
        return sum(kind.num_sequences for kind in self.kinds)

    def train_iters(self, global_batch_size: int) -> int:
        """Complete iterations in the plan. Raises ConfigError where there is not even one."""
        iterations = self.num_sequences // global_batch_size
        if iterations == 0:
            raise ConfigError(
                f"the mixture gives {self.num_sequences} sequences of {self.sequence_length} tokens, less than one "
                f"global batch of {global_batch_size}; lower --global-batch-size or --seq-length, or raise --epochs"
            )
        return iterations

    def table(self, global_batch_size: int | None = None) -> str:
        """The plan as lines of text for a terminal."""
        lines = [f"{'kind':<6}{'samples':>12}{'tokens':>16}{'epochs':>9}{'sequences':>12}{'share':>8}"]
        for kind in self.kinds:
            share = kind.num_sequences / self.num_sequences
            lines.append(
                f"{kind.kind:<6}{kind.num_samples:>12,}{kind.num_tokens:>16,}{kind.epochs:>9.2f}"
                f"{kind.num_sequences:>12,}{share:>8.1%}"
            )
        lines += [f"{kind:<6}less than one sequence of {self.sequence_length} tokens: skipped" for kind in self.skipped]
        lines.append(f"{self.num_sequences:,} sequences of {self.sequence_length} tokens")
        if global_batch_size:
            lines[-1] += f" = {self.train_iters(global_batch_size):,} iterations of {global_batch_size}"
        return "\n".join(lines)


def split_fractions(split: str) -> tuple[float, float, float]:
    """The parts of train, validation and test that Megatron's ``--split`` asks for, e.g. "99,1,0"; they sum to 1.

    Raises ConfigError where it is not one to three numbers, not negative, with a training part above zero.
    """
    try:
        parts = [float(part) for part in split.split(",")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or min(parts) < 0 or not math.isfinite(sum(parts)) or parts[0] == 0:
        raise ConfigError(f"--split {split}: expected parts of train, validation and test such as 99,1,0")
    parts += [0.0] * (3 - len(parts))
    return parts[0] / sum(parts), parts[1] / sum(parts), parts[2] / sum(parts)


def split_documents(num_samples: int, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which samples are for training, validation and test: three rising int32 arrays of positions in the dataset.

    Validation and test are spread evenly over the dataset, so that each source is held out in proportion. (Megatron
    itself takes the end of the file, which is the end of whatever source came last.) The sizes are Megatron's.
    """
    train, valid, _ = split_fractions(split)
    num_held = num_samples - round(train * num_samples)
    num_test = num_samples - max(round((train + valid) * num_samples), num_samples - num_held)
    held = _evenly_spread(np.arange(num_samples, dtype=np.int32), num_held)
    test = _evenly_spread(held, num_test)
    in_held = np.zeros(num_samples, bool)
    in_held[held] = True
    return np.flatnonzero(~in_held).astype(np.int32), np.setdiff1d(held, test), test


def _evenly_spread(positions: np.ndarray, count: int) -> np.ndarray:
    return positions[((2 * np.arange(count) + 1) * len(positions)) // max(2 * count, 1)]


def sequences_in(num_tokens: float, sequence_length: int) -> int:
    """Sequences that the engine cuts from ``num_tokens`` tokens in a row: each needs one more for its last label."""
    return max(0, math.floor(num_tokens - 1) // sequence_length)


def plan_mixture(
    manifest: MixtureManifest,
    *,
    sequence_length: int,
    split: str = "100,0,0",
    epochs: float | Mapping[str, float] = 1.0,
    weights: Mapping[str, float] | None = None,
) -> MixturePlan:
    """Plan how many sequences of each kind a run draws.

    ``epochs`` is the number of passes over the training split, one number for all kinds or one per kind (a kind that
    is not named: 1). With ``weights`` (parts of the run's tokens per kind; a kind that is not named: none) the run is
    as long as ``epochs`` asks for, and the kinds share it by weight: small kinds are then repeated and large ones cut.
    Raises ConfigError on kinds the mixture lacks, and where nothing is left to train on.
    """
    given = dict(epochs) if isinstance(epochs, Mapping) else dict.fromkeys(manifest.kinds, epochs)
    per_kind = dict.fromkeys(manifest.kinds, 1.0) | given
    for flag, named in (("--epochs", per_kind), ("--mixture-weights", weights or {})):
        _check_kinds(flag, named, manifest)
    sizes = {kind: _training_size(manifest, kind, split) for kind in KINDS if kind in manifest.kinds}
    drawn = {kind: per_kind[kind] * tokens for kind, (_, tokens) in sizes.items()}
    if weights:
        total = sum(drawn.values())
        drawn = {kind: total * weights.get(kind, 0.0) / sum(weights.values()) for kind in sizes}
    plans = [_plan_kind(kind, *sizes[kind], drawn[kind], sequence_length) for kind in sizes]
    chosen = tuple(plan for plan in plans if plan.num_sequences > 0)
    if not chosen:
        raise ConfigError(
            f"{manifest.folder}: no kind has a sequence of {sequence_length} tokens in its training split; "
            "lower --seq-length"
        )
    skipped = tuple(plan.kind for plan in plans if plan not in chosen and drawn[plan.kind] > 0)
    return MixturePlan(sequence_length, split, chosen, skipped)


def _plan_kind(kind: str, num_samples: int, num_tokens: int, drawn_tokens: float, sequence_length: int) -> KindPlan:
    # Rounding keeps e.g. 0.1 * 10 passes from ending one token short.
    num_sequences = sequences_in(round(drawn_tokens, 3), sequence_length)
    return KindPlan(kind, num_samples, num_tokens, num_sequences, drawn_tokens / max(num_tokens, 1))


def _training_size(manifest: MixtureManifest, kind: str, split: str) -> tuple[int, int]:
    """(samples, tokens) of a kind's training split."""
    lengths = read_lengths(Path(f"{manifest.prefix(kind)}.idx"))
    train, _, _ = split_documents(len(lengths), split)
    return len(train), int(lengths[train].sum(dtype=np.int64))


def _check_kinds(flag: str, named: Mapping[str, float], manifest: MixtureManifest) -> None:
    for kind, value in named.items():
        if kind not in manifest.kinds:
            held = ", ".join(manifest.kinds)
            raise ConfigError(f"{flag} {kind}={value}: the mixture {manifest.folder} has only {held}; remove it")
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{flag} {kind}={value}: expected a number of zero or more")
    if named and not any(named.values()):
        raise ConfigError(f"{flag}: at least one kind must be above zero")


def parse_kind_values(flag: str, text: str) -> dict[str, float]:
    """Read ``cpt=0.7,sft=0.2,dpo=0.1``. Raises ConfigError naming ``flag`` where it is anything else."""
    values = {}
    for item in text.split(","):
        kind, separator, number = item.partition("=")
        try:
            values[kind.strip()] = float(number)
        except ValueError:
            separator = ""
        if not separator or kind.strip() not in KINDS:
            raise ConfigError(f"{flag} {text}: expected kinds and numbers such as cpt=0.7,sft=0.2,dpo=0.1")
    return values


def parse_epochs(text: str) -> float | dict[str, float]:
    """Read ``--epochs``: a number for all kinds, or ``cpt=1,sft=2``. Raises ConfigError."""
    try:
        return float(text)
    except ValueError:
        return parse_kind_values("--epochs", text)


def held_out_sequences(manifest: MixtureManifest, plan: MixturePlan) -> dict[str, int]:
    """Complete sequences in each planned kind's validation split."""
    held_out = held_out_tokens(manifest, plan)
    return {kind: sequences_in(tokens, plan.sequence_length) for kind, tokens in held_out.items()}


def held_out_tokens(manifest: MixtureManifest, plan: MixturePlan) -> dict[str, int]:
    """Tokens of each planned kind's validation split."""
    tokens = {}
    for kind in plan.kinds:
        lengths = read_lengths(Path(f"{manifest.prefix(kind.kind)}.idx"))
        valid = split_documents(len(lengths), plan.split)[1]
        tokens[kind.kind] = int(lengths[valid].sum(dtype=np.int64))
    return tokens


def share_out(total: int, parts: dict[str, int]) -> dict[str, int]:
    """Split ``total`` into whole numbers in proportion to ``parts``; they sum to ``total`` unless all parts are 0."""
    ends, whole, taken = 0, sum(parts.values()), {}
    for name, part in parts.items():
        start = total * ends // max(whole, 1)
        ends += part
        taken[name] = total * ends // max(whole, 1) - start
    return taken

"""How many sequences of each dataset a run trains on. Arithmetic on the .idx files' lengths; no torch, no engine.

A dataset is a kind of record, or a named source of one. The engine cuts its training documents, shuffled and laid end
to end, into sequences of ``sequence_length`` tokens that overlap by the one token that is the last label of one and the
first input of the next (``GPTDataset``, megatron/core/datasets/gpt_dataset.py). ``E`` passes over ``T`` tokens thus
give ``(E * T - 1) // sequence_length`` sequences; what is left over, less than one sequence, is not trained on.

By default each dataset is passed over once, which blends them in proportion to their tokens::

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
from megatron_mixcpt.data.mixture.shares import passes_of, share_by_weight
from megatron_mixcpt.errors import ConfigError


@dataclass(frozen=True)
class DatasetPlan:
    """What one dataset contributes to a run."""

    name: str
    """A kind (``cpt``), or a named source of one (``cpt.law``)."""
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
    """What a run draws from each dataset."""

    sequence_length: int
    """In tokens."""
    split: str
    """Parts of train, validation and test, as in Megatron's ``--split``."""
    datasets: tuple[DatasetPlan, ...]
    """Only those that contribute at least one sequence."""
    skipped: tuple[str, ...]
    """Datasets of the mixture too small for a single sequence."""

    @property
    def num_sequences(self) -> int:
        """Sequences of all datasets together: the largest ``--train-samples`` that repeats nothing."""
        return sum(dataset.num_sequences for dataset in self.datasets)

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
        width = max(6, *(len(name) + 2 for name in (*self.skipped, *(dataset.name for dataset in self.datasets))))
        lines = [f"{'kind':<{width}}{'samples':>12}{'tokens':>16}{'epochs':>9}{'sequences':>12}{'share':>8}"]
        for dataset in self.datasets:
            share = dataset.num_sequences / self.num_sequences
            lines.append(
                f"{dataset.name:<{width}}{dataset.num_samples:>12,}{dataset.num_tokens:>16,}{dataset.epochs:>9.2f}"
                f"{dataset.num_sequences:>12,}{share:>8.1%}"
            )
        lines += [
            f"{name:<{width}}less than one sequence of {self.sequence_length} tokens: skipped" for name in self.skipped
        ]
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
    """Plan how many sequences of each dataset a run draws.

    ``epochs`` is the number of passes over the training split: one number for all, or one per name (what is not named:
    1). With ``weights`` (parts of the run's tokens per name; what is not named: none) the run is as long as ``epochs``
    asks for, and is shared by weight: small datasets are then repeated and large ones cut. The names are those of
    ``shares.py``. Raises ConfigError on names the mixture lacks, and where nothing is left to train on.
    """
    passes = passes_of(manifest.datasets, epochs)
    sizes = {name: _training_size(manifest, name, split) for name in manifest.datasets}
    drawn = {name: passes[name] * tokens for name, (_, tokens) in sizes.items()}
    if weights:
        drawn = share_by_weight(drawn, weights)
    plans = [_plan_dataset(name, *sizes[name], drawn[name], sequence_length) for name in sizes]
    chosen = tuple(plan for plan in plans if plan.num_sequences > 0)
    if not chosen:
        raise ConfigError(
            f"{manifest.folder}: no kind has a sequence of {sequence_length} tokens in its training split; "
            "lower --seq-length"
        )
    skipped = tuple(plan.name for plan in plans if plan not in chosen and drawn[plan.name] > 0)
    return MixturePlan(sequence_length, split, chosen, skipped)


def _plan_dataset(
    name: str, num_samples: int, num_tokens: int, drawn_tokens: float, sequence_length: int
) -> DatasetPlan:
    # Rounding keeps e.g. 0.1 * 10 passes from ending one token short.
    num_sequences = sequences_in(round(drawn_tokens, 3), sequence_length)
    return DatasetPlan(name, num_samples, num_tokens, num_sequences, drawn_tokens / max(num_tokens, 1))


def _training_size(manifest: MixtureManifest, name: str, split: str) -> tuple[int, int]:
    """(samples, tokens) of a dataset's training split."""
    lengths = read_lengths(Path(f"{manifest.prefix(name)}.idx"))
    train, _, _ = split_documents(len(lengths), split)
    return len(train), int(lengths[train].sum(dtype=np.int64))


def held_out_sequences(manifest: MixtureManifest, plan: MixturePlan) -> dict[str, int]:
    """Complete sequences in each planned dataset's validation split."""
    held_out = held_out_tokens(manifest, plan)
    return {name: sequences_in(tokens, plan.sequence_length) for name, tokens in held_out.items()}


def held_out_tokens(manifest: MixtureManifest, plan: MixturePlan) -> dict[str, int]:
    """Tokens of each planned dataset's validation split."""
    tokens = {}
    for dataset in plan.datasets:
        lengths = read_lengths(Path(f"{manifest.prefix(dataset.name)}.idx"))
        valid = split_documents(len(lengths), plan.split)[1]
        tokens[dataset.name] = int(lengths[valid].sum(dtype=np.int64))
    return tokens


def share_out(total: int, parts: dict[str, int]) -> dict[str, int]:
    """Split ``total`` into whole numbers in proportion to ``parts``; they sum to ``total`` unless all parts are 0."""
    ends, whole, taken = 0, sum(parts.values()), {}
    for name, part in parts.items():
        start = total * ends // max(whole, 1)
        ends += part
        taken[name] = total * ends // max(whole, 1) - start
    return taken

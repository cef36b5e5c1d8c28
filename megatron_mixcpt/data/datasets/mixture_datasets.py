"""The engine's datasets for a :class:`~megatron_mixcpt.data.mixture.plan.MixturePlan`.

Each dataset of the mixture becomes a :class:`PassesDataset` over its training split with exactly as many sequences as
the plan says, and an *exhaustive* ``BlendedDataset`` draws each of them once, interleaved in proportion (``size=None``
with whole-number weights; megatron/core/datasets/blended_dataset.py). The engine's usual way, weights plus a size, asks
each for half a percent more than its share, which starts another pass and repeats some sequences while others stay
unseen.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split

from megatron_mixcpt.data.datasets.passes import PassesDataset
from megatron_mixcpt.data.datasets.whole_indices import WholeBlendedDataset
from megatron_mixcpt.data.mixture.manifest import MANIFEST_NAME, MixtureManifest
from megatron_mixcpt.data.mixture.plan import (
    MixturePlan,
    held_out_sequences,
    held_out_tokens,
    sequences_in,
    share_out,
    split_documents,
)
from megatron_mixcpt.errors import ConfigError

CACHE_NAME = "cache"
"""Folder in the mixture's for what is made from it and can be made again."""

type Built = BlendedDataset | None
"""A dataset, or None where it is not built on this rank or would be empty."""


def build_mixture_datasets(
    manifest: MixtureManifest,
    plan: MixturePlan,
    config: GPTDatasetConfig,
    *,
    num_valid_sequences: int,
    is_built_on_rank: Callable[[], bool] = lambda: True,
) -> tuple[Built, Built]:
    """Build the training and the validation dataset of a run. Every rank must call this.

    The training dataset has exactly ``plan.num_sequences`` sequences. The validation dataset has
    ``num_valid_sequences``, the datasets in proportion to their held-out tokens, passed over as often as that takes.
    ``config.sequence_length`` must be the plan's. ``config.path_to_cache`` is **changed**, to a folder inside it (in
    the mixture's, where it is None) whose name depends on the mixture and the split: the engine tells its cached
    indices apart by neither, and would reuse stale ones after the mixture was made again.
    """
    assert config.sequence_length == plan.sequence_length, (config.sequence_length, plan.sequence_length)
    _set_cache(manifest, plan.split, config)
    train = {dataset.name: dataset.num_sequences for dataset in plan.datasets}
    valid = share_out(num_valid_sequences, held_out_tokens(manifest, plan))
    return (
        _blend(manifest, plan, config, train, Split.train, is_built_on_rank),
        _blend(manifest, plan, config, valid, Split.valid, is_built_on_rank),
    )


def build_validation_sets(
    manifest: MixtureManifest,
    plan: MixturePlan,
    config: GPTDatasetConfig,
    *,
    is_built_on_rank: Callable[[], bool] = lambda: True,
) -> dict[str, GPTDataset | None]:
    """One validation dataset for each of the mixture, passing once over its held-out samples, by name.

    For the engine's ``--multiple-validation-sets --full-validation``. Datasets whose held-out samples are fewer
    tokens than one sequence are left out. Every rank must call this; see :func:`build_mixture_datasets` for ``config``.
    """
    _set_cache(manifest, plan.split, config)
    return {
        name: _gpt_dataset(manifest, plan.split, config, name, count, Split.valid, is_built_on_rank)
        for name, count in held_out_sequences(manifest, plan).items()
        if count > 0
    }


def build_whole_set(manifest: MixtureManifest, name: str, config: GPTDatasetConfig) -> GPTDataset | None:
    """A validation dataset of all samples of one dataset, each whole sequence once. Every rank must call this.

    ``config.path_to_cache`` is **changed** as in :func:`build_mixture_datasets`.

    Raises:
        ConfigError: the samples are less than one sequence.
    """
    num_sequences = sequences_in(manifest.datasets[name].tokens, config.sequence_length)
    if num_sequences == 0:
        raise ConfigError(
            f"{manifest.prefix(name)}: {manifest.datasets[name].tokens} tokens are less than one sequence of "
            f"{config.sequence_length}: give more text, or a smaller --seq-length"
        )
    _set_cache(manifest, "all samples", config)
    return _gpt_dataset(manifest, None, config, name, num_sequences, Split.valid, lambda: True)


def _set_cache(manifest: MixtureManifest, split: str, config: GPTDatasetConfig) -> None:
    base = Path(config.path_to_cache or manifest.folder / CACHE_NAME)
    content = (manifest.folder / MANIFEST_NAME).read_bytes() + split.encode()
    name = hashlib.sha256(content).hexdigest()[:16]
    if base.name != name:
        config.path_to_cache = str(base / name)


def _blend(
    manifest: MixtureManifest,
    plan: MixturePlan,
    config: GPTDatasetConfig,
    num_sequences: dict[str, int],
    split: Split,
    is_built_on_rank: Callable[[], bool],
) -> Built:
    """An exhaustive blend of ``num_sequences`` of each dataset; None where that is nothing or not on this rank."""
    wanted = {name: count for name, count in num_sequences.items() if count > 0}
    parts = [_gpt_dataset(manifest, plan.split, config, name, wanted[name], split, is_built_on_rank) for name in wanted]
    if not parts:
        return None
    counts = list(wanted.values())
    return BlendedMegatronDatasetBuilder.build_generic_dataset(
        WholeBlendedDataset, is_built_on_rank, True, parts, counts, None, config
    )


def _gpt_dataset(
    manifest: MixtureManifest,
    parts: str | None,
    config: GPTDatasetConfig,
    name: str,
    num_sequences: int,
    split: Split,
    is_built_on_rank: Callable[[], bool],
) -> GPTDataset | None:
    """``num_sequences`` of the samples that ``parts`` gives to ``split``; of all samples where it is None."""
    prefix = manifest.prefix(name)
    documents = PassesDataset.build_low_level_dataset(prefix, config)
    everything = np.arange(len(documents), dtype=np.int32)
    chosen = everything if parts is None else split_documents(len(documents), parts)[split.value]
    return BlendedMegatronDatasetBuilder.build_generic_dataset(
        PassesDataset, is_built_on_rank, True, documents, prefix, chosen, num_sequences, split, config
    )

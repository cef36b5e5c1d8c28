"""The engine's dataset provider for a mixture, with each sample's place in the training stream."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.training.global_vars import get_tokenizer
from torch.utils.data import Dataset

from megatron_mixcpt.data.datasets.mixture_datasets import (
    build_mixture_datasets,
    build_validation_sets,
    build_whole_set,
)
from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.mixture.plan import MixturePlan
from megatron_mixcpt.training.engine.whole_validation import PaddedSamples
from megatron_mixcpt.training.pretraining.validation_sets import NamedSet

# Seed of the order of complete validation sets: the same for every --seed, so that the figures of
# runs with other seeds are of the same sequences.
VALIDATION_SEED = 1234


class IndexedSamples(Dataset):
    """A dataset whose samples also say where they stand in it (``sample_index``)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        # The engine picks the sampler by it.
        self.split = dataset.split if isinstance(dataset, BlendedDataset) else dataset.index_split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "sample_index": index}


def dataset_config(args: argparse.Namespace) -> GPTDatasetConfig:
    """The engine's dataset settings; masks are made where they are used, from the document boundaries."""
    return GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        split=args.split,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=False,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=False,
        inter_document_masking=args.dataloader_inter_document_masking,
    )


def dataset_provider(
    args: argparse.Namespace, manifest: MixtureManifest, plan: MixturePlan, named: Mapping[str, NamedSet]
) -> Callable:
    """What ``pretrain()`` calls for the training, validation and test datasets, on every rank.

    With full_validation, validation is a list of complete sets: one per dataset of the mixture, then the ``named``.
    """

    def provide(num_samples: tuple[int, int, int], vp_stage: int | None = None) -> tuple[Any, ...]:
        config = dataset_config(args)
        num_valid = 0 if args.full_validation else num_samples[1]
        train, valid = build_mixture_datasets(manifest, plan, config, num_valid_sequences=num_valid)
        if args.full_validation:
            config = dataclasses.replace(dataset_config(args), random_seed=VALIDATION_SEED)
            sets = [
                *build_validation_sets(manifest, plan, dataclasses.replace(config)).values(),
                *(build_whole_set(item.manifest, item.dataset, dataclasses.replace(config)) for item in named.values()),
            ]
            valid = [PaddedSamples(IndexedSamples(part), args.eval_global_batch_size) for part in sets]
        elif valid is not None:
            valid = IndexedSamples(valid)
        return IndexedSamples(train), valid, None

    provide.is_distributed = True  # type: ignore[attr-defined]  # the engine reads it: build on every rank
    return provide


def set_identities(
    args: argparse.Namespace, manifest: MixtureManifest, plan: MixturePlan, named: Mapping[str, NamedSet]
) -> dict[str, str]:
    """Name of each complete validation set, in the engine's order, to a text that identifies its sequences."""
    digests = {dataset: f"{summary.bin_sha256} {plan.split}" for dataset, summary in manifest.datasets.items()}
    digests |= {name: item.identity() for name, item in named.items()}
    return {name: f"{digests[name]} {args.seq_length}" for name in args.validation_set_names}

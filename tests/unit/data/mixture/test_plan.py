"""The plan of a run: sequences per kind, passes, weights and splits, against counts done by hand."""

from pathlib import Path

import numpy as np
import pytest

from megatron_mixcpt.data.mixture.indexed import token_type_for, write_index
from megatron_mixcpt.data.mixture.manifest import DatasetSummary, MixtureManifest, TokenizerIdentity
from megatron_mixcpt.data.mixture.plan import (
    plan_mixture,
    sequences_in,
    split_documents,
    split_fractions,
)
from megatron_mixcpt.errors import ConfigError


def write_mixture(folder: Path, **lengths: list[int]) -> MixtureManifest:
    """A mixture whose kinds have samples of the given lengths; the tokens are their places in the dataset."""
    kinds = {}
    for kind, kind_lengths in lengths.items():
        write_index(folder / f"{kind}.idx", np.array(kind_lengths, np.int32), token_type_for(70_000))
        np.arange(sum(kind_lengths), dtype=np.int32).tofile(folder / f"{kind}.bin")
        num = len(kind_lengths)
        kinds[kind] = DatasetSummary(num, sum(kind_lengths), num, {}, 0, (), "", "")
    MixtureManifest(folder, "test", TokenizerIdentity("tokenizer", "abc", "</s>", 0, 70_000), {}, kinds).save()
    return MixtureManifest.load(folder)


def sequences(plan) -> dict[str, int]:
    return {dataset.name: dataset.num_sequences for dataset in plan.datasets}


def test_sequences_need_one_token_more_for_the_last_label() -> None:
    assert [sequences_in(tokens, 4) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]


def test_one_epoch_is_in_proportion_to_tokens(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, cpt=[50, 31], sft=[20] * 2 + [1], dpo=[11])
    plan = plan_mixture(manifest, sequence_length=10)
    assert sequences(plan) == {"cpt": 8, "sft": 4, "dpo": 1}
    assert plan.num_sequences == 13
    assert plan.train_iters(4) == 3


def test_epochs_for_all_and_per_kind(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, cpt=[81], sft=[41])
    assert sequences(plan_mixture(manifest, sequence_length=10, epochs=3)) == {"cpt": 24, "sft": 12}
    assert sequences(plan_mixture(manifest, sequence_length=10, epochs={"sft": 2.5})) == {"cpt": 8, "sft": 10}
    assert sequences(plan_mixture(manifest, sequence_length=10, epochs={"cpt": 0})) == {"sft": 4}


def test_weights_share_the_length_that_epochs_ask_for(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, cpt=[900], sft=[100])
    plan = plan_mixture(manifest, sequence_length=10, weights={"cpt": 1, "sft": 3})
    assert sequences(plan) == {"cpt": 24, "sft": 74}
    assert [kind.epochs for kind in plan.datasets] == [250 / 900, 7.5]


def test_kind_smaller_than_a_sequence_is_skipped_and_said(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, cpt=[50], dpo=[10])
    plan = plan_mixture(manifest, sequence_length=10)
    assert (sequences(plan), plan.skipped) == ({"cpt": 4}, ("dpo",))
    assert "dpo   less than one sequence of 10 tokens: skipped" in plan.table()
    with pytest.raises(ConfigError, match="lower --seq-length"):
        plan_mixture(manifest, sequence_length=50)


def test_plan_without_a_whole_batch_is_refused(tmp_path: Path) -> None:
    plan = plan_mixture(write_mixture(tmp_path, cpt=[41]), sequence_length=10)
    assert plan.train_iters(4) == 1
    with pytest.raises(ConfigError, match="4 sequences of 10 tokens, less than one global batch of 5"):
        plan.train_iters(5)


@pytest.mark.parametrize(
    ("num_samples", "split"), [(1000, "99,1,0"), (1000, "90,5,5"), (7, "80,20"), (3, "1"), (0, "9,1")]
)
def test_split_covers_each_sample_once_and_evenly(num_samples: int, split: str) -> None:
    train, valid, test = split_documents(num_samples, split)
    assert sorted(np.concatenate([train, valid, test]).tolist()) == list(range(num_samples))
    assert all((np.diff(part) > 0).all() for part in (train, valid, test))
    parts = split_fractions(split)
    assert [len(part) for part in (train, valid, test)] == [round(part * num_samples) for part in parts]
    if len(valid) > 1:
        # From the first sample to the last: a block of neighbours leaves a gap before or after it.
        assert np.diff([-1, *valid, num_samples]).max() <= 2.01 * num_samples / len(valid)


def test_held_out_samples_are_not_planned(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, cpt=[10] * 100)
    assert sequences(plan_mixture(manifest, sequence_length=10, split="90,10,0")) == {"cpt": 89}


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,2", "0,1", "nan,1", "inf"])
def test_bad_split_is_refused(split: str) -> None:
    with pytest.raises(ConfigError, match="expected parts of train"):
        split_fractions(split)


@pytest.mark.parametrize(
    ("epochs", "weights", "message"),
    [
        ({"dpo": 1}, None, "--epochs dpo=1: .* has only cpt"),
        (1, {"sft": 1}, "--mixture-weights sft=1"),
        (1, {"cpt": 0}, "at least one kind"),
        (-1, None, "zero or more"),
        (float("nan"), None, "zero or more"),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, epochs, weights, message: str) -> None:
    manifest = write_mixture(tmp_path, cpt=[100])
    with pytest.raises(ConfigError, match=message):
        plan_mixture(manifest, sequence_length=10, epochs=epochs, weights=weights)

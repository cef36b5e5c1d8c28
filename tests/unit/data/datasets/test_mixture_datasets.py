"""One epoch of a mixture, counted with the engine's own datasets: each token once, none of another split."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from megatron_mixcpt.data.datasets.mixture_datasets import (
    build_mixture_datasets,
    build_validation_sets,
    build_whole_set,
)
from megatron_mixcpt.data.mixture.plan import held_out_tokens, plan_mixture, share_out, split_documents
from tests.unit.data.mixture.test_plan import write_mixture

SEQUENCE_LENGTH = 16


def engine_config(manifest, split: str) -> GPTDatasetConfig:
    """What training passes, with a tokenizer that has no padding token."""
    return GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQUENCE_LENGTH,
        blend=([manifest.prefix(kind) for kind in manifest.datasets], None),
        split=split,
        tokenizer=SimpleNamespace(vocab_size=70_000, eod=0, unique_identifiers={"name": "test"}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )


@pytest.fixture
def manifest(tmp_path: Path):
    """Three kinds of 900, 310 and 65 tokens; each token's id is its place in its dataset."""
    return write_mixture(tmp_path, cpt=[7, 13, 25] * 20, sft=[31] * 10, dpo=[5] * 13)


def labels_seen(dataset) -> dict[int, Counter]:
    """How often each token was a label, by place of the kind in the blend."""
    seen: dict[int, Counter] = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        seen.setdefault(int(sample["dataset_id"]), Counter()).update(sample["labels"].tolist())
    return seen


def build(manifest, split: str = "100,0,0", num_valid: int = 0, **options):
    plan = plan_mixture(manifest, sequence_length=SEQUENCE_LENGTH, split=split, **options)
    return plan, build_mixture_datasets(manifest, plan, engine_config(manifest, split), num_valid_sequences=num_valid)


def test_one_epoch_sees_each_sequence_once(manifest) -> None:
    plan, (train, valid) = build(manifest)
    assert valid is None
    assert len(train) == plan.num_sequences == 899 // 16 + 309 // 16 + 64 // 16
    for place, seen in labels_seen(train).items():
        kind = plan.datasets[place]
        assert set(seen.values()) == {1}
        assert len(seen) == kind.num_sequences * SEQUENCE_LENGTH
        # All but the first token and what is left over at the end was a label.
        assert kind.num_tokens - 1 - len(seen) < SEQUENCE_LENGTH


def test_three_epochs_see_each_sequence_three_times(manifest) -> None:
    plan, (train, _) = build(manifest, epochs=3)
    assert len(train) == plan.num_sequences
    for place, seen in labels_seen(train).items():
        kind = plan.datasets[place]
        assert max(seen.values()) <= 3
        assert 3 * kind.num_tokens - 1 - seen.total() < SEQUENCE_LENGTH


def test_epochs_per_kind(manifest) -> None:
    plan, (train, _) = build(manifest, epochs={"cpt": 1, "sft": 4, "dpo": 0})
    seen = labels_seen(train)
    assert [dataset.name for dataset in plan.datasets] == ["cpt", "sft"]
    assert max(seen[0].values()) == 1 and seen[0].total() == 56 * 16
    assert max(seen[1].values()) == 4 and 4 * 310 - 1 - seen[1].total() < SEQUENCE_LENGTH


def test_weights_exhaust_a_small_kind_evenly(manifest) -> None:
    plan, (train, _) = build(manifest, weights={"cpt": 0.5, "dpo": 0.5})
    seen = labels_seen(train)
    cpt, dpo = plan.datasets
    # Half of the run is 637 tokens: 0.7 passes over one kind, which repeats nothing, and 9.8 over the other.
    assert set(seen[0].values()) == {1} and cpt.epochs < 1
    assert seen[0].total() == cpt.num_sequences * SEQUENCE_LENGTH
    assert dpo.epochs == pytest.approx(637.5 / 65)
    assert set(seen[1].values()) <= {9, 10} and len(seen[1]) == 65
    assert seen[1].total() == dpo.num_sequences * SEQUENCE_LENGTH


def test_sources_of_a_kind_are_weighted_against_each_other(tmp_path: Path) -> None:
    """Of 1,280 tokens three quarters are law, which has 320: three passes. Replay gives a third of its 960."""
    manifest = write_mixture(tmp_path, **{"cpt.law": [40] * 8, "cpt.replay": [60] * 16})
    plan, (train, _) = build(manifest, weights={"cpt.law": 3, "cpt.replay": 1})
    law, replay = plan.datasets
    assert (law.name, law.epochs, law.num_sequences) == ("cpt.law", 3.0, (960 - 1) // 16)
    assert (replay.name, replay.epochs, replay.num_sequences) == ("cpt.replay", 1 / 3, (320 - 1) // 16)
    seen = labels_seen(train)
    assert set(seen[0].values()) <= {2, 3, 4} and len(seen[0]) == 320 and set(seen[1].values()) == {1}
    order = [int(train[index]["dataset_id"]) for index in range(len(train))]
    assert abs(order[:40].count(0) - 30) <= 1


def test_kinds_are_interleaved_in_proportion(manifest) -> None:
    plan, (train, _) = build(manifest)
    order = [int(train[index]["dataset_id"]) for index in range(len(train))]
    for place, kind in enumerate(plan.datasets):
        half = order[: len(order) // 2].count(place)
        assert abs(half - kind.num_sequences / 2) <= 1


def test_training_and_validation_share_no_sample(manifest) -> None:
    split = "80,20,0"
    plan, (train, valid) = build(manifest, split=split, num_valid=50)
    assert len(train) == plan.num_sequences
    assert len(valid) == 50
    assert plan.datasets[2].name == "dpo"
    train_seen, valid_seen = labels_seen(train), labels_seen(valid)
    for place, kind in enumerate(plan.datasets):
        assert set(train_seen[place].values()) == {1}
        assert not set(train_seen[place]) & set(valid_seen[place]), kind
    assert len(split_documents(60, split)[1]) == 12


def test_resumed_blend_goes_on_where_it_was(manifest) -> None:
    _, (before, _) = build(manifest)
    _, (after, _) = build(manifest)
    assert all(before[index]["tokens"].equal(after[index]["tokens"]) for index in range(len(before)))


def test_made_again_mixture_does_not_meet_stale_indices(tmp_path: Path) -> None:
    _, (first, _) = build(write_mixture(tmp_path, cpt=[50] * 4))
    plan, (second, _) = build(write_mixture(tmp_path, cpt=[20] * 4))
    assert (len(first), len(second)) == (12, plan.num_sequences)
    assert max(max(sample["labels"].tolist()) for sample in (second[i] for i in range(len(second)))) < 80


def test_validation_sets_pass_over_their_kind_once(manifest) -> None:
    split = "50,50,0"
    plan = plan_mixture(manifest, sequence_length=SEQUENCE_LENGTH, split=split)
    sets = build_validation_sets(manifest, plan, engine_config(manifest, split))
    tokens = held_out_tokens(manifest, plan)
    assert list(sets) == ["cpt", "sft", "dpo"]
    for kind, dataset in sets.items():
        assert len(dataset) == (tokens[kind] - 1) // SEQUENCE_LENGTH


def test_share_out_is_exact() -> None:
    assert share_out(10, {"a": 1, "b": 1, "c": 1}) == {"a": 3, "b": 3, "c": 4}
    assert share_out(7, {"a": 0, "b": 5}) == {"a": 0, "b": 7}
    assert share_out(7, {"a": 0}) == {"a": 0}


def test_other_split_does_not_meet_stale_indices(manifest) -> None:
    """Same cache folder, same number of sequences: only the split differs, which the engine's cache does not know."""
    seen = []
    for split in ("80,20,0", "60,40,0"):
        plan = plan_mixture(manifest, sequence_length=SEQUENCE_LENGTH, split=split)
        config = engine_config(manifest, split)
        config.split = "1,1,1"
        config.path_to_cache = str(manifest.folder / "shared")
        _, valid = build_mixture_datasets(manifest, plan, config, num_valid_sequences=40)
        seen.append({label for counter in labels_seen(valid).values() for label in counter})
    assert len(seen[0]) < len(seen[1])


def test_documents_end_where_the_index_says_and_not_at_an_eos_inside(tmp_path: Path) -> None:
    """With --document-masking. Token 3 of the first document is EOS, as --allow-special-tokens makes it."""
    manifest = write_mixture(tmp_path, cpt=[7, 13, 25, 5])
    plan = plan_mixture(manifest, sequence_length=SEQUENCE_LENGTH, split="100,0,0")

    def config() -> GPTDatasetConfig:
        made = engine_config(manifest, "100,0,0")
        made.tokenizer.eod, made.inter_document_masking = 3, True
        return made

    train, _ = build_mixture_datasets(manifest, plan, config(), num_valid_sequences=0)
    measured = build_whole_set(manifest, "cpt", config())
    for dataset in (train, measured):
        cuts = set()
        for sample in (dataset[index] for index in range(len(dataset))):
            first = int(sample["tokens"][0])  # each token's id is its place
            ends = {int(end) for end in sample["cu_seqlens"]}
            cuts |= {first + end for end in ends if 0 < end < SEQUENCE_LENGTH}
        assert cuts == {7, 20, 45} - {16, 32, 48}

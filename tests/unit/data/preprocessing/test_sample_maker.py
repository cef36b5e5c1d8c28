"""What a row passes on its way to a sample: presets, filters, fraction, test sets; then what selects samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mixcpt.data.preprocessing.decontaminate import TestSets, read_test_sets
from megatron_mixcpt.data.preprocessing.near_duplicates import find_near_duplicates, signature
from megatron_mixcpt.data.preprocessing.parts.files import SAMPLE_TYPE
from megatron_mixcpt.data.preprocessing.sample_maker import Sample, SampleMaker
from megatron_mixcpt.data.preprocessing.settings import KeptKindSettings, PreprocessSettings
from megatron_mixcpt.data.preprocessing.what_stays import REASONS, first_occurrences, limit, select
from megatron_mixcpt.data.reading.field_names import FIELDS_OF_KIND, FieldNames
from megatron_mixcpt.data.reading.presets import PRESETS, preset_for
from megatron_mixcpt.data.reading.record_maker import Dropped, RecordMaker
from megatron_mixcpt.data.records import REJECT_REASONS, BadRecord
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from megatron_mixcpt.errors import ConfigError

TOKENIZER = TokenizerFiles(Path(), "", "", "</s>", 0, 10, ())


def settings_for(kind: str = "cpt", **options) -> PreprocessSettings:
    common = {
        name: options.pop(name) for name in ("min_tokens", "near_duplicates", "keep_duplicates") if name in options
    }
    return PreprocessSettings(datasets={kind: KeptKindSettings(**options)}, tokenizer=TOKENIZER, **common)


def maker_of(kind: str, settings: PreprocessSettings, sets: TestSets | None = None) -> Callable[[Any], Sample]:
    """Makes samples of rows, as a reader of parts does."""
    records = RecordMaker(kind, settings.datasets[kind], settings.reading.rules, keeps_equal_sides=True)
    samples = SampleMaker(kind, settings, sets)
    return lambda row: samples.make(records.make(row))


def outcome(maker: Callable[[Any], Sample], row: dict) -> str:
    """The sample's text, or why there is none."""
    try:
        return maker(row).text
    except Dropped as dropped:
        return dropped.reason


def with_preset(name: str, *rows: dict) -> list[str]:
    preset = PRESETS[name]
    chosen = settings_for(preset.kind, preset=name, names=FieldNames(**preset.names))
    maker = maker_of(preset.kind, chosen)
    return [outcome(maker, row) for row in rows]


def test_presets_read_the_columns_they_name() -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "+"}]
    other = [talk[0], {"role": "assistant", "content": "-"}]
    assert with_preset("wikipedia", {"title": "t", "text": "a"}, {"title": "redirect", "text": ""}) == ["a", "filtered"]
    scored = [{"text": "a", "meta": {"lm_q1q2_score": 0.7}}, {"text": "b", "lm_q1q2_score": 0.5}, {"text": "c"}]
    assert with_preset("automathtext", *scored) == ["a", "filtered", "filtered"]
    assert with_preset("starcoder", {"content": "x = 1", "id": 3}) == ["x = 1"]
    assert with_preset("pubmed", {"title": "t", "content": "c", "contents": "t. c"}) == ["t. c"]
    assert with_preset("tulu-v2", {"dataset": "d", "messages": talk}) == ["q\n+"]
    assert with_preset("ultrafeedback", {"prompt": "q", "chosen": talk, "rejected": other}) == ["q\n+"]


def test_ultrafeedback_scores_become_a_preference() -> None:
    def row(*scores: float | None) -> dict:
        return {"instruction": "q", "completions": [{"response": f"r{x}", "overall_score": x} for x in scores]}

    rows = row(3, 9, 1), row(5, 5), row(None, 4), {"instruction": "q", "completions": None}
    assert with_preset("ultrafeedback-scores", *rows) == ["q\nr9", "filtered", "filtered", "filtered"]


def test_presets_are_of_a_kind() -> None:
    with pytest.raises(ConfigError, match="--sft-preset wikipedia: no such preset; for sft there are tulu-v2"):
        preset_for("sft", "wikipedia")


def test_filter_comes_before_the_shape() -> None:
    maker = maker_of("cpt", settings_for(filter="score > 1"))
    assert outcome(maker, {"score": 0}) == "filtered"
    assert outcome(maker, {"score": 2, "text": "a"}) == "a"
    assert RecordMaker("cpt", KeptKindSettings(filter="score > 1"), ()).extra_fields == {"score"}


def test_fraction_is_drawn_by_content_alone() -> None:
    texts = [f"text {number}" for number in range(2000)]
    drawn = {}
    for fraction in (0.1, 0.3):
        maker = maker_of("cpt", settings_for(fraction=fraction))
        drawn[fraction] = {text for text in texts if outcome(maker, {"text": text}) == text}
        # Three standard deviations of a binomial draw.
        assert abs(len(drawn[fraction]) - 2000 * fraction) < 3 * (2000 * fraction * (1 - fraction)) ** 0.5
    assert drawn[0.1] < drawn[0.3]


def test_contaminated_samples_are_found() -> None:
    item = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
    sets = TestSets(iter([item, "too short", "one two three four five six seven eight nine"]), 13)
    assert sets.num_runs == 7 + 1
    for text in (
        f"Q:\n{item.upper()}",
        item.replace(" ", "\n* "),
        "x one, two, three: four five six seven eight nine!",
    ):
        assert sets.shared_words(text)
    for text in ("Natalia sold clips to 48 of her friends in March, and then she sold half of them", "too short", ""):
        assert sets.shared_words(text) is None
    maker = maker_of("cpt", settings_for(), sets)
    assert [outcome(maker, {"text": text}) for text in (item, "fine")] == ["contaminated", "fine"]


def test_test_sets_are_read_whatever_their_fields(tmp_path: Path) -> None:
    long = "a b c d e f g h i j"
    (tmp_path / "a.jsonl").write_text(json.dumps({"n": 1, "x": [{"y": long}, None]}) + "\n\n")
    (tmp_path / "b.txt").write_text(long.upper() + " k")
    assert read_test_sets([str(tmp_path)], 13).num_runs == 2


def samples_of(lengths: list[int], digests: list[int]) -> np.ndarray:
    table = np.zeros(len(lengths), SAMPLE_TYPE)
    table["length"], table["digest"][:, 0], table["digest"][:, 1] = lengths, digests, 7
    return table


def test_selection_gives_the_first_reason() -> None:
    parts = [samples_of([5, 5, 2, 9], [1, 2, 3, 1]), samples_of([5, 5, 5], [2, 4, 5])]
    codes = select(parts, [], settings_for(min_tokens=2))
    limit(parts, codes, 15)
    named = [[REASONS[code] for code in part] for part in codes]
    assert named == [["", "", "too_few_tokens", "duplicate"], ["duplicate", "", "over_max_tokens"]]


def test_first_occurrences_in_ranges(monkeypatch) -> None:
    random = np.random.default_rng(0)
    digests = random.integers(0, 300, 1000)
    expected = np.zeros(1000, bool)
    expected[np.unique(digests, return_index=True)[1]] = True
    for bucket_samples in (10**6, 100, 7):
        monkeypatch.setattr("megatron_mixcpt.data.preprocessing.what_stays.BUCKET_SAMPLES", bucket_samples)
        parts = np.split(samples_of([1] * 1000, digests), [0, 10, 500])
        assert np.array_equal(np.concatenate(first_occurrences(parts)), expected)


def test_near_duplicates_are_found_across_files(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(300)]
    texts = [
        [" ".join(words), " ".join(reversed(words))],
        [" ".join(words[:298] + ["other", "end"]), " ".join(words[:150]), "short"],
    ]
    paths = []
    for number, part in enumerate(texts):
        paths.append(tmp_path / str(number))
        np.array([signature(text) for text in part]).tofile(paths[-1])
    kept = [np.ones(2, bool), np.ones(3, bool)]
    near = find_near_duplicates(paths, kept, 0.8)
    assert [part.tolist() for part in near] == [[False, False], [True, False, False]]
    kept[0][0] = False
    assert not any(part.any() for part in find_near_duplicates(paths, kept, 0.8))


ROLES = st.sampled_from(["user", "assistant", "system", "", None])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"role": ROLES, "content": inner}), max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", ["cpt", "sft", "dpo"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_record_is_a_sample_or_refused_by_name(kind: str, data: st.DataObject) -> None:
    fields = st.dictionaries(st.sampled_from([*FIELDS_OF_KIND[kind], "other"]), ANYTHING, max_size=5)
    row = data.draw(fields | ANYTHING)
    try:
        sample = maker_of(kind, settings_for(kind))(row)
    except BadRecord as error:
        assert error.reason in REJECT_REASONS and error.detail
    else:
        assert sample.text.encode("utf-8").strip() and len(sample.digest) == 16

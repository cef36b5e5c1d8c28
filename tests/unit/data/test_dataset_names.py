"""What a dataset may be called, and which kind of record it is of."""

import pytest

from megatron_mixcpt.data.dataset_names import dataset_name, is_dataset_name, kind_of, of_kind


def test_a_source_is_named_after_its_kind() -> None:
    assert [dataset_name("cpt", ""), dataset_name("cpt", "law")] == ["cpt", "cpt.law"]
    assert [kind_of("sft"), kind_of("cpt.law-2")] == ["sft", "cpt"]
    assert of_kind("cpt", ["sft", "cpt.b", "cpt.a", "cpts"]) == ["cpt.b", "cpt.a"]


@pytest.mark.parametrize(
    ("name", "is_good"),
    [("cpt", True), ("dpo.a-B_9", True), ("web", False), ("cpt.", False), ("cpt.-a", False), ("cpt./../a", False)],
)
def test_names(name: str, is_good: bool) -> None:
    assert is_dataset_name(name) == is_good

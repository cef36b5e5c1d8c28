"""The filter language: what it means, and that nothing outside it is ever evaluated."""

import pytest

from megatron_mixcpt.data.reading.row_filter import RowFilter
from megatron_mixcpt.errors import ConfigError

ROW = {"score": 0.8, "lang": "en", "meta": {"score": 5, "tags": ["a", "b"]}, "odd name": 1, "text": "Hello", "no": None}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("score >= 0.7", True),
        ("score >= 0.9", False),
        ("0.5 < score <= 0.8", True),
        ("meta.score == 5 and lang in ('en', 'fr')", True),
        ("not (lang == 'en' or score < 0)", False),
        ("'a' in meta.tags", True),
        ("lang not in ['de']", True),
        ("field('odd name') == 1", True),
        ("missing >= 0.7", False),
        ("missing < 0.7", False),
        ("missing == null", True),
        ("no != null", False),
        ("lang >= 0.7", False),
        ("score > -1", True),
        ("len(text) == 5", True),
        ("len(missing) > 0", False),
        ("startswith(lower(text), 'hell')", True),
        ("endswith(text, 'x')", False),
        ("number('0.5') < score", True),
        ("number(lang) > 0", False),
        ("true", True),
    ],
)
def test_meaning(expression: str, expected: bool) -> None:
    assert RowFilter(expression, "--cpt-filter")(ROW) is expected


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "score >=",
        "__import__('os').system('true')",
        "open('x')",
        "text.upper()",
        "len(text, 1)",
        "[x for x in text]",
        "lambda: 1",
        "score + 1 > 0",
        "text[0]",
        "score is null",
        "(score := 1)",
        "f'{text}'",
        "len(text)(1)",
        "'a' * 10**9",
        "field(text)",
    ],
)
def test_anything_else_is_refused(expression: str) -> None:
    with pytest.raises(ConfigError, match="--cpt-filter"):
        RowFilter(expression, "--cpt-filter")


def test_fields_are_known_for_tables() -> None:
    assert RowFilter("meta.score > field('odd name') or len(text) > true", "").fields == {
        "meta.score",
        "odd name",
        "text",
    }

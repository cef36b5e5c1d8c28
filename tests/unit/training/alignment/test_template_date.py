"""The date in a chat template is that of the first start: of the checkpoint, or before there is one, of a file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron_mixcpt.data.chat.templates import ChatTemplate
from megatron_mixcpt.training.alignment.template_date import IN_RECORD, date_of_first_start, keep_date

DATED = ChatTemplate("dated", "{{ strftime_now('%H:%M') }}", now="2026-01-02T03:04:05")


def checkpoint(record: dict[str, Any] | None) -> Any:
    return SimpleNamespace(arguments=lambda: {} if record is None else {"run_record": record})


def test_the_first_start_has_no_date(tmp_path: Path) -> None:
    assert date_of_first_start(None, None) is None
    assert date_of_first_start(None, str(tmp_path / "save")) is None
    assert date_of_first_start(checkpoint(None), str(tmp_path)) is None


def test_a_start_without_a_checkpoint_finds_the_date_of_the_first(tmp_path: Path) -> None:
    keep_date(DATED, str(tmp_path / "save"))
    assert date_of_first_start(None, str(tmp_path / "save")) == DATED.now


def test_a_checkpoint_knows_the_date(tmp_path: Path) -> None:
    keep_date(DATED, str(tmp_path))
    assert date_of_first_start(checkpoint({IN_RECORD: "2025-12-31T00:00:00"}), str(tmp_path)) == "2025-12-31T00:00:00"


def test_a_template_without_a_date_leaves_no_file(tmp_path: Path) -> None:
    keep_date(ChatTemplate("plain", "{{ messages }}"), str(tmp_path))
    assert not list(tmp_path.iterdir())

"""The date that a chat template writes is that of the run's first start: a sample must not change overnight.

A checkpoint keeps it. Until there is one, a file in ``--save`` does.
"""

from pathlib import Path

from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.data.chat.templates import ChatTemplate
from megatron_mixcpt.jobs.whole_outputs import make_folder, write_whole

IN_RECORD = "the date in the chat template"
"""Its name in the record of a run, see ``engine/run_record.py``."""
_FILE = "chat_template_date.txt"


def date_of_first_start(resumed: MegatronCheckpoint | None, save: str | None) -> str | None:
    """The date and time (ISO) of the run's first start; None where this is the first, as far as is known."""
    record = resumed.arguments().get("run_record") if resumed else None
    if isinstance(record, dict) and isinstance(record.get(IN_RECORD), str):
        return record[IN_RECORD]
    kept = Path(save) / _FILE if save else None
    return kept.read_text(encoding="utf-8").strip() if kept and kept.is_file() else None


def keep_date(template: ChatTemplate, save: str | None) -> None:
    """Keep the date for the next start, where the template writes one. Raises OSError."""
    if template.uses_date and save:
        make_folder(Path(save))
        write_whole(Path(save) / _FILE, template.now + "\n")

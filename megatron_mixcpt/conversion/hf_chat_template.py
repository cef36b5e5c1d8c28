"""The chat template of a model folder, written as transformers 5 keeps it, and the tokens that end a response."""

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_mixcpt.conversion.tensor_files.reader import read_json
from megatron_mixcpt.jobs.whole_outputs import write_whole

TEMPLATE_NAME = "chat_template.jinja"


def save_chat_template(folder: str | Path, template: str, stop_token_ids: Sequence[int]) -> None:
    """Make ``template`` the folder's chat template, in place, and have generation stop at ``stop_token_ids``.

    ``chat_template.jinja`` is written; a template inside tokenizer_config.json, which older versions of transformers
    kept there, is removed. generation_config.json gains the stop tokens that it lacks: a base model's names only the
    end of a document, and a chat would then continue past the end of a turn.
    """
    folder = Path(folder)
    write_whole(folder / TEMPLATE_NAME, template)
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    if config.pop("chat_template", None) is not None:
        write_whole(config_path, json.dumps(config, indent=2) + "\n")
    _add_stop_tokens(folder / "generation_config.json", list(stop_token_ids))


def _add_stop_tokens(path: Path, stop_token_ids: list[int]) -> None:
    config = read_json(path) if path.exists() else {}
    present = config.get("eos_token_id")
    known = [] if present is None else present if isinstance(present, list) else [present]
    if missing := [token_id for token_id in stop_token_ids if token_id not in known]:
        config["eos_token_id"] = [*known, *missing]
        write_whole(path, json.dumps(config, indent=2) + "\n")

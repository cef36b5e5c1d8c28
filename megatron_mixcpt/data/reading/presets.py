"""The data sets of the paper by name: which fields they use, and what of them is not for training.

``--cpt-preset wikipedia`` stands for the field names, filter and conversion below; flags given beside it win.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from megatron_mixcpt.errors import ConfigError

Row = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """How a published data set is read."""

    kind: str
    about: str
    """Where it comes from, and the columns it is expected to have."""
    names: dict[str, str] = field(default_factory=dict)
    """Field names that differ from the default, by what they are for."""
    filter: str | None = None
    convert: Callable[[Row], Row] | None = None
    """Turns a row of the data set into one that ``records.to_record`` takes."""
    reads: tuple[str, ...] = ()
    """Columns that ``convert`` needs."""


def best_and_worst(row: Row) -> Row:
    """A row of UltraFeedback as first published: the highest scored completion against the lowest.

    Expects ``instruction`` and ``completions``, each with ``response`` and ``overall_score``. Without two different
    scores there is no preference, and the row is left without one (it is then filtered out).
    """
    completions = [item for item in row.get("completions") or [] if isinstance(item.get("overall_score"), int | float)]
    if len({item["overall_score"] for item in completions}) < 2:
        return {"prompt": row.get("instruction"), "chosen": None, "rejected": None}
    ranked = sorted(completions, key=lambda item: item["overall_score"])
    return {"prompt": row.get("instruction"), "chosen": ranked[-1]["response"], "rejected": ranked[0]["response"]}


PRESETS = {
    "wikipedia": Preset(
        "cpt",
        "wikimedia/wikipedia (Parquet: id, url, title, text) or wikiextractor --json (id, url, title, text); "
        "articles without text, which wikiextractor writes for redirects, are left out",
        filter="len(text) > 0",
    ),
    "automathtext": Preset(
        "cpt",
        "math-ai/AutoMathText (JSONL: text, and lm_q1q2_score in meta or beside it); texts scored 0.6 and above",
        filter="meta.lm_q1q2_score >= 0.6 or lm_q1q2_score >= 0.6",
    ),
    "starcoder": Preset(
        "cpt", "bigcode/starcoderdata (Parquet: content, max_stars_repo_name, ...)", {"text": "content"}
    ),
    "pubmed": Preset(
        "cpt", "MedRAG/pubmed (JSONL: id, title, content, contents); title and abstract", {"text": "contents"}
    ),
    "tulu-v2": Preset("sft", "allenai/tulu-v2-sft-mixture (Parquet: dataset, id, messages)"),
    "ultrafeedback": Preset(
        "dpo",
        "HuggingFaceH4/ultrafeedback_binarized (Parquet: prompt, chosen, rejected, the last two whole conversations)",
    ),
    "ultrafeedback-scores": Preset(
        "dpo",
        "openbmb/UltraFeedback (JSONL: instruction, completions with response and overall_score); best against worst",
        filter="chosen != null",
        convert=best_and_worst,
        reads=("instruction", "completions"),
    ),
}


def preset_for(kind: str, name: str | None) -> Preset:
    """The preset of a name, or one that changes nothing. Raises ConfigError for an unknown name or another kind's."""
    if name is None:
        return Preset(kind, "")
    if name not in PRESETS or PRESETS[name].kind != kind:
        known = ", ".join(known for known, preset in PRESETS.items() if preset.kind == kind)
        raise ConfigError(f"--{kind}-preset {name}: no such preset; for {kind} there are {known}")
    return PRESETS[name]

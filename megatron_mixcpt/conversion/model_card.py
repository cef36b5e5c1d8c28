"""The model card of an exported model: its base model and how it was trained, as far as the checkpoint knows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Arguments of the run that get a line, where the run has them, and their names on the card.
HYPERPARAMETERS = {
    "distillation": "distillation",
    "alpha": "alpha (weight of next-token prediction)",
    "distillation_fraction": "share of the samples distilled",
    "lr": "learning rate",
    "min_lr": "final learning rate",
    "lr_decay_style": "learning rate decay",
    "weight_decay": "weight decay",
    "global_batch_size": "global batch size (samples)",
    "seq_length": "sequence length (tokens)",
    "consumed_train_samples": "training samples seen",
    "seed": "seed",
}
SEEN = "consumed_train_samples"


def model_card(
    origin: Mapping[str, Any],
    arguments: Mapping[str, Any],
    figures: Mapping[str, str | float],
    library: str = "transformers",
) -> str:
    """The card as Markdown with the header that the Hugging Face Hub reads.

    Args:
        origin: ``source.json`` of the checkpoint's ``hf/`` folder (empty where it has none).
        arguments: of the run that saved the checkpoint.
        figures: further lines: the losses that the run logged, from :func:`training_log.logged_figures`, and what its
            adapters are.
        library: what loads the folder, ``transformers`` or ``peft``.
    """
    base = origin.get("base_model", "unknown")
    lines = ["---", f"library_name: {library}", f"base_model: {base}", "tags: [mix-cpt, megatron]", "---", ""]
    if arguments.get(SEEN):
        lines += [f"# {base}, trained further with Mix-CPT", "", "| | |", "|---|---|"]
        said = [(text, arguments.get(key)) for key, text in HYPERPARAMETERS.items()]
        said += [("teacher", _folder_name(arguments.get("teacher"))), ("data", _folder_name(arguments.get("mixture")))]
        said += [("SHA-256 of the data's manifest", _manifest_digest(arguments.get("mixture")))]
        lines += [f"| {text} | {value} |" for text, value in said if isinstance(value, str | int | float)]
    else:
        lines += [f"# {base}", "", "Converted through Megatron without training.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in figures.items()]
    if quantization := origin.get("quantization"):
        lines += [f"| weights of the base model | {quantization}, read as bfloat16; these are not quantized |"]
    if carried := origin.get("carried"):
        parts = ", ".join(carried["parts"])
        lines += [f"| the base model's, not trained | {carried['tensors']} tensors: {parts} |"]
    lines += [f"| digest of the base model's config and tokenizer | {origin.get('digest', 'unknown')} |", ""]
    return "\n".join(lines)


def _folder_name(path: Any) -> str | None:
    """A folder's name without the path to it, which does not belong in a public card."""
    return Path(path).name if isinstance(path, str) else None


def _manifest_digest(mixture: Any) -> str | None:
    manifest = Path(mixture) / "mixture.json" if isinstance(mixture, str) else None
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest and manifest.is_file() else None

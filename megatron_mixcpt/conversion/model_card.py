"""The model card of an exported model: where it comes from and how it was trained, from what the checkpoint knows."""

from collections.abc import Mapping
from typing import Any

# Arguments of the run worth a line, where the run had them, and how the card calls them.
HYPERPARAMETERS = {
    "distillation": "distillation",
    "alpha": "alpha (weight of next-token prediction)",
    "distillation_fraction": "share of the samples distilled",
    "teacher": "teacher",
    "mixture": "data mixture",
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


def model_card(origin: Mapping[str, Any], arguments: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The card as Markdown with the header that the Hugging Face Hub reads.

    Args:
        origin: ``source.json`` of the checkpoint's ``hf/`` folder (empty where it has none).
        arguments: those of the run that saved the checkpoint.
        record: ``training.json`` of that folder: what the run wrote down, such as its data's digest and losses.
    """
    base = origin.get("base_model", "unknown")
    lines = ["---", "library_name: transformers", f"base_model: {base}", "tags: [mix-cpt, megatron]", "---", ""]
    if arguments.get(SEEN):
        lines += [f"# {base}, trained further with Mix-CPT", "", "| | |", "|---|---|"]
        said = [(text, arguments.get(key)) for key, text in HYPERPARAMETERS.items()]
        lines += [f"| {text} | {value} |" for text, value in said if isinstance(value, str | int | float)]
    else:
        lines += [f"# {base}", "", "Converted through Megatron without training.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in record.items()]
    lines += [f"| digest of the base model's config and tokenizer | {origin.get('digest', 'unknown')} |", ""]
    return "\n".join(lines)

"""Rows of several documents, for models whose rotary embedding depends on the length of what is read."""

from megatron_mixcpt.conversion.hf_model_folder import ModelPlan
from megatron_mixcpt.errors import ConfigError


def check_document_lengths(model: ModelPlan, seq_length: int, reason: str) -> None:
    """Raise ConfigError where a row could hold documents that transformers reads with different tables.

    Args:
        model: the student or the teacher.
        seq_length: tokens of a row.
        reason: the flag or kind of training that puts documents of any length into a row.
    """
    rope = model.options.rope
    if rope is None or rope.short_length is None or seq_length <= rope.short_length:
        return
    raise ConfigError(
        f"--seq-length {seq_length} with {reason}: the rotary embedding of {model.folder} (rope_type {rope.kind}) is "
        f"another for documents above {rope.short_length} tokens, and a row has one for all of its documents; give "
        f"--seq-length {rope.short_length} at most"
    )

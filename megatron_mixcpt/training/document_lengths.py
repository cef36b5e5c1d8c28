"""Rows of several documents, for models whose rotary embedding depends on the length of what is read."""

from pathlib import Path

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.options import ModelOptions


def check_document_lengths(options: ModelOptions, folder: Path, seq_length: int, reason: str) -> None:
    """Raise ConfigError where a row could hold documents that transformers reads with different tables.

    Args:
        options: of the student or the teacher.
        folder: its model folder, for the message.
        seq_length: tokens of a row.
        reason: the flag or kind of training that puts documents of any length into a row.
    """
    rope = options.rope
    if rope is None or rope.short_length is None or seq_length <= rope.short_length:
        return
    raise ConfigError(
        f"--seq-length {seq_length} with {reason}: the rotary embedding of {folder} (rope_type {rope.kind}) is "
        f"another for documents above {rope.short_length} tokens, and a row has one for all of its documents; give "
        f"--seq-length {rope.short_length} at most"
    )

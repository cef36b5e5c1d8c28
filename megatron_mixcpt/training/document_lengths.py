"""Rows of several documents, for models in which a token's place in a row counts beyond its distance to others."""

from pathlib import Path

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.options import ModelOptions


def check_document_lengths(options: ModelOptions, folder: Path, seq_length: int, reason: str) -> None:
    """Raise ConfigError where a row could hold documents that transformers reads in another way each on its own.

    So it does where the rotary embedding depends on the length of what is read, or queries on their place in it.

    Args:
        options: of the student or the teacher.
        folder: its model folder, for the message.
        seq_length: tokens of a row.
        reason: the flag or kind of training that puts documents of any length into a row.
    """
    scale = options.position_scale
    if scale is not None and seq_length > scale.length:
        raise ConfigError(
            f"--seq-length {seq_length} with {reason}: queries of {folder} grow with their place in a document from "
            f"token {scale.length} on, and in a row with the place in the row; give --seq-length {scale.length} at most"
        )
    rope = options.rope
    if rope is None or rope.short_length is None or seq_length <= rope.short_length:
        return
    raise ConfigError(
        f"--seq-length {seq_length} with {reason}: the rotary embedding of {folder} (rope_type {rope.kind}) is "
        f"another for documents above {rope.short_length} tokens, and a row has one for all of its documents; give "
        f"--seq-length {rope.short_length} at most"
    )

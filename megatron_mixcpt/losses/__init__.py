"""Losses over a vocabulary that is sharded across tensor parallel ranks: tensors and a process group in, losses out."""

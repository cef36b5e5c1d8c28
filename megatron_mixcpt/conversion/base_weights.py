"""Which weights a model folder holds, as a digest by which a checkpoint that lacks them recognises its base model.

The digest reads a sample of each tensor: two trainings of the same model differ in it, and files of another number or
order do not.
"""

import hashlib
import math
from collections.abc import Iterable

from megatron_mixcpt.conversion.hf_model_folder import HFModel
from megatron_mixcpt.conversion.tensor_files.reader import SafetensorsFolder, TensorEntry

KEY = "base_weights"
"""Of the digest in a checkpoint's ``source.json``."""
SAMPLE_BYTES = 4096


def weights_digest(model: HFModel) -> str:
    """:func:`tensors_digest` of the language model's tensors, the output layer only where it is not the embedding."""
    return tensors_digest(model.tensors, model.hf_shapes())


def tensors_digest(tensors: SafetensorsFolder, names: Iterable[str]) -> str:
    """SHA-256, in hexadecimal, over name, dtype, shape and first bytes of the named tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(names):
        entry = tensors.entries[name]
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode() + _first_bytes(entry))
    return digest.hexdigest()


def _first_bytes(entry: TensorEntry) -> bytes:
    """The first bytes that a tensor lies on disk as; no more than there are where those are quantized, 4 bits each."""
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        return file.read(min(SAMPLE_BYTES, -(-math.prod(entry.shape) // 2)))

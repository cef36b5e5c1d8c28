"""Open the engine's pickles without running anything from them.

A checkpoint of the engine keeps its index and the arguments of its run as pickles, which can name any function to call.
Here only plain containers, argument namespaces and torch's own index classes are made; everything else (the engine's
enumerations, paths, anything hostile) becomes an :class:`Opaque` that does nothing.
"""

import io
import pickle
from types import SimpleNamespace
from typing import Any

import torch

ALLOWED = {
    "argparse": {"Namespace"},
    "collections": {"OrderedDict"},
    "torch": {"Size", "float16", "bfloat16", "float32", "float64", "uint8", "int8", "int32", "int64", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


class Opaque:
    """Stands for a value of a type that is not opened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class InertUnpickler(pickle.Unpickler):
    """An unpickler that makes ``ALLOWED`` types and otherwise :class:`Opaque`."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name in ALLOWED.get(module_name, ()):
            return super().find_class(module_name, global_name)
        return Opaque


def load_index(content: bytes) -> Any:
    """The index of a distributed checkpoint (``.metadata``)."""
    return InertUnpickler(io.BytesIO(content)).load()


def load_object(content: bytes) -> Any:
    """What torch.save wrote, on the CPU, with every tensor opaque."""
    inert = SimpleNamespace(__name__="inert_pickle", Unpickler=InertUnpickler, load=pickle.load)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=inert)

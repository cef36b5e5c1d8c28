"""Open the engine's pickles without running anything that they name.

A checkpoint of the engine keeps its index and the arguments of its run as pickles, which can name any function to call.
Only plain containers, argument namespaces and torch's index classes are made here; everything else (the engine's
enumerations, paths, anything hostile) becomes an :class:`Opaque`, which does nothing.
"""

import io
import pickle
import zipfile
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
    """An unpickler that makes ``ALLOWED`` types and otherwise :class:`Opaque`; ``unopened`` names those others."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.unopened: set[str] = set()

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name in ALLOWED.get(module_name, ()):
            return super().find_class(module_name, global_name)
        self.unopened.add(f"{module_name}.{global_name}")
        return Opaque

    def persistent_load(self, pid: Any) -> Opaque:
        """A tensor's storage, in what torch.save wrote."""
        return Opaque()


def load_index(content: bytes) -> Any:
    """The index of a distributed checkpoint (``.metadata``)."""
    return InertUnpickler(content).load()


def names_beyond(content: bytes, allowed: frozenset[str]) -> list[str]:
    """The classes and functions in a pickle that are neither opened here nor ``allowed``, as ``module.name``."""
    unpickler = InertUnpickler(content)
    unpickler.load()
    return sorted(unpickler.unopened - allowed)


def load_object(content: bytes) -> Any:
    """An object that torch.save wrote, with every tensor opaque.

    torch.load would do more than unpickle: it reads files of its first format with the plain ``pickle.load``, whatever
    unpickler it is given, and runs TorchScript.

    Raises ValueError where the file is not in torch.save's zip format.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"not a file of torch.save ({error})") from error
    if not 0 < sizes.get("data.pkl", 0) <= len(content):  # torch compresses nothing
        raise ValueError("not a file of torch.save (it has no plain data.pkl)")
    return InertUnpickler(torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data.pkl")).load()

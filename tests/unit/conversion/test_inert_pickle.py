"""Pickles in a checkpoint are opened without running what they name."""

import io
import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.inert_pickle import Opaque, load_index, load_object


class Hostile:
    """Pickles as a call of ``os.system``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_nothing_is_called(tmp_path):
    hostile = {"harm": Hostile(tmp_path / "marker"), "kept": [1, "two", torch.Size((3,))]}
    found = load_index(pickle.dumps(hostile))
    assert isinstance(found["harm"], Opaque) and found["kept"] == [1, "two", torch.Size((3,))]
    saved = io.BytesIO()
    torch.save(hostile, saved)
    assert isinstance(load_object(saved.getvalue())["harm"], Opaque)
    assert not (tmp_path / "marker").exists()


def test_only_torchs_present_format_is_opened(tmp_path):
    """torch.load reads its first format with the plain ``pickle.load``, whichever unpickler it is given."""
    first_format = io.BytesIO()
    torch.save(Hostile(tmp_path / "marker"), first_format, _use_new_zipfile_serialization=False)
    for content in (
        first_format.getvalue(),
        pickle.dumps(Hostile(tmp_path / "marker")),
        b"",
        b"PK\x05\x06" + bytes(18),
    ):
        with pytest.raises(ValueError, match="not a file of torch.save"):
            load_object(content)
    assert not (tmp_path / "marker").exists()


def test_a_dotted_name_in_an_allowed_module_is_not_followed():
    """Protocol 4 resolves ``module.attribute.attribute``: torch.serialization imports os, for one."""
    stack = b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.getpid\x93)R."
    assert isinstance(load_index(stack), Opaque)


def test_arguments_of_unknown_types_are_opaque():
    saved = io.BytesIO()
    torch.save([{"args": Namespace(lr=1e-4, path=Path("a"), dtype=torch.bfloat16)}], saved)
    arguments = vars(load_object(saved.getvalue())[0]["args"])
    assert arguments["lr"] == 1e-4 and arguments["dtype"] is torch.bfloat16
    assert isinstance(arguments["path"], Opaque)

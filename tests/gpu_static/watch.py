"""Records what must not happen to fake tensors of the device: tensors elsewhere, waits for the device, host copies."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result has a value or a shape that the host must know before it goes on.
WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount", "repeat_interleave.Tensor", "_assert_async_to_sync"),
}
# Operators that change how memory is looked at, or reserve some, and start no kernel.
WITHOUT_KERNEL = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "as_strided", "alias", "detach", "expand"),
    *("select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "unsqueeze", "squeeze", "t"),
    *("transpose", "permute", "diagonal", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty"),
    *("new_empty_strided", "sym_size", "sym_stride", "sym_numel", "_version", "set_", "is_same_size", "device"),
}


_in_one_program = False


@contextmanager
def as_one_program() -> Iterator[None]:
    """What runs inside stands for one compiled program: watched, but its operators are not counted one by one."""
    global _in_one_program
    _in_one_program = True
    try:
        yield
    finally:
        _in_one_program = False


class Watch(TorchDispatchMode):
    """Counts operators by name (``aten``'s, without the overload); the last three ought to stay empty.

    A tensor on the ``meta`` device is of no matter. A boolean index counts as waiting, since its result's shape depends
    on the values.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()
        self.device_type = device_type
        self.operators: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.host_copies: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = str(func).split(".")[1]
        inputs = _tensors((args, kwargs))
        self.operators[name] += not _in_one_program
        if name in WAITING or ".".join(str(func).split(".")[1:]) in WAITING or _has_boolean_index(name, args):
            self.waits[name] += 1
        output = func(*args, **(kwargs or {}))
        results = _tensors(output)
        if any(self._is_elsewhere(result) for result in results):
            self.elsewhere[name] += 1
        if name in ("_to_copy", "copy_", "copy", "_copy_from"):
            devices = {tensor.device.type for tensor in inputs + results}
            if {"cpu", self.device_type} <= devices:
                self.host_copies[name] += 1
        return output

    def _is_elsewhere(self, tensor: Tensor) -> bool:
        return tensor.device.type not in (self.device_type, "meta")

    @property
    def kernels(self) -> Counter[str]:
        """The operators that start at least one kernel on a GPU when they are not compiled."""
        return Counter(
            {name: number for name, number in self.operators.items() if number and name not in WITHOUT_KERNEL}
        )

    def check(self, *tensors: Tensor | None) -> None:
        """Raise AssertionError unless nothing was recorded, and ``tensors`` are on the device."""
        found = {"made elsewhere": self.elsewhere, "waits": self.waits, "copied by the host": self.host_copies}
        wrong = {what: dict(counts) for what, counts in found.items() if counts}
        assert not wrong, f"not on the {self.device_type} device alone: {wrong}"
        places = [tensor.device for tensor in tensors if tensor is not None]
        assert all(place.type == self.device_type for place in places), f"results on {places}"

    def __reduce__(self) -> tuple:
        """Pickled without the state of the mode, which is no matter once it is left."""
        return _restored, (self.device_type, self.operators, self.elsewhere, self.waits, self.host_copies)


def _restored(device_type: str, *counts: Counter[str]) -> Watch:
    watch = Watch(device_type)
    watch.operators, watch.elsewhere, watch.waits, watch.host_copies = counts
    return watch


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _has_boolean_index(name: str, args: tuple) -> bool:
    """Whether a tensor is indexed by a mask, whose number of True the host must know."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    # A write of one value to every masked entry is done by masking, without a wait.
    fills = name != "index" and args[2].numel() == 1
    return not fills and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])

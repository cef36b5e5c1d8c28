"""One linear map for each expert over rows that are sorted by expert: a single grouped product where torch has one.

What runs is decided here alone, by the tensors' device, dtype and sizes (:func:`takes_grouped_mm`); both ways give the
same values and gradients.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear

# torch refuses tensors whose rows or first element are not aligned so (aten/src/ATen/native/GroupedMMUtils.h).
ALIGNMENT_BYTES = 16
# Hopper. On other devices, and for other dtypes, torch's grouped_mm is a loop that copies the group sizes to the host
# (_grouped_mm_cuda in aten/src/ATen/native/cuda/GroupedBlas.cpp); on Blackwell it is a kernel that leaves the gradient
# of an expert without tokens undefined (pytorch/pytorch#172439).
GROUPED_CAPABILITY = 9
_CPU_DTYPES = (torch.float32, torch.bfloat16)


def grouped_linear(x: Tensor, weight: Tensor, tokens_per_expert: Sequence[int]) -> Tensor:
    """Multiply each expert's rows by the transpose of its weight.

    No device is waited for: the sizes of the groups are known on the host, and are sent to the device where needed.

    Args:
        x: [t, k], sorted by expert.
        weight: [e, n, k], of the dtype of ``x``.
        tokens_per_expert: rows of each of the e experts, in order; 0 is allowed. They add up to t.

    Returns:
        [t, n], of the dtype of ``x``.
    """
    if takes_grouped_mm(x, weight):
        return grouped_mm(x, weight.transpose(1, 2), offs=_last_rows(tokens_per_expert, x.device))
    # unbind: its gradient is one stack, where that of an index would be a tensor of zeros for each expert.
    parts = zip(x.split(list(tokens_per_expert)), weight.unbind(0), strict=True)
    return torch.cat([linear(rows, matrix) for rows, matrix in parts])


def takes_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    """Whether torch has a grouped product for these tensors that is exact and that does not wait for the device."""
    if x.size(0) == 0 or any(size * weight.element_size() % ALIGNMENT_BYTES for size in weight.shape[1:]):
        return False
    if x.device.type == "cpu":
        return x.dtype in _CPU_DTYPES
    if x.device.type != "cuda" or torch.version.hip or x.dtype != torch.bfloat16:
        return False
    is_aligned = not any(tensor.data_ptr() % ALIGNMENT_BYTES for tensor in (x, weight))
    return is_aligned and torch.cuda.get_device_capability(x.device)[0] == GROUPED_CAPABILITY


def _last_rows(tokens_per_expert: Sequence[int], device: torch.device) -> Tensor:
    """int32 [e]: the row after each expert's last one. From page-locked memory, so that the copy is not waited for."""
    pin = device.type == "cuda"
    ends = torch.tensor(list(accumulate(tokens_per_expert)), dtype=torch.int32, pin_memory=pin)
    return ends.to(device, non_blocking=True)

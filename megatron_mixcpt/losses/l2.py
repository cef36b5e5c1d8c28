"""Squared distance of the parameters to those training started from (the paper's ``l2`` ablation, Table 3).

    penalty = coefficient * ||theta - theta_ori||^2,   d penalty / d theta = 2 * coefficient * (theta - theta_ori)

In one pass over the parameters, a slice at a time, so that nothing of their size is held. Parameters may be sharded
over several ranks: each rank adds up what it holds, leaves out what another rank counts already, and the sums are added
over the process groups given. The gradient needs no communication.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# Elements in one step: 64 MiB of float32 temporaries, whatever the size of a parameter.
SLICE_ELEMENTS = 2**24


def l2_distance(
    params: Sequence[Tensor],
    reference_params: Sequence[Tensor],
    *,
    is_duplicate: Sequence[bool] | None = None,
    groups: Iterable[dist.ProcessGroup] = (),
) -> Tensor:
    """||theta - theta_ori||^2 over all ranks, a float64 scalar without gradient, the same on every rank of ``groups``.

    Args:
        params, reference_params: this rank's parameters and what they started from, pairwise of the same shape, in any
            floating dtype and contiguous; compared in float32.
        is_duplicate: for each, whether another rank of ``groups`` counts it (replicated over TP, a tied embedding's
            second copy, another data parallel rank's); None: none is.
        groups: the groups over which the parameters are spread, e.g. TP and PP. One all-reduce of 8 bytes each.
    """
    return _accumulate(params, reference_params, None, 0.0, is_duplicate, groups)


def add_l2_gradient(
    gradients: Sequence[Tensor],
    params: Sequence[Tensor],
    reference_params: Sequence[Tensor],
    *,
    coefficient: float,
    is_duplicate: Sequence[bool] | None = None,
    groups: Iterable[dist.ProcessGroup] = (),
) -> Tensor:
    """Add 2 * coefficient * (theta - theta_ori) to ``gradients`` in place and return :func:`l2_distance`, in one pass.

    Duplicates are not counted in the distance, but get the gradient, so that replicas stay equal.
    """
    return _accumulate(params, reference_params, gradients, 2 * coefficient, is_duplicate, groups)


@torch.no_grad()
def _accumulate(
    params: Sequence[Tensor],
    reference_params: Sequence[Tensor],
    gradients: Sequence[Tensor] | None,
    scale: float,
    is_duplicate: Sequence[bool] | None,
    groups: Iterable[dist.ProcessGroup],
) -> Tensor:
    duplicates = [False] * len(params) if is_duplicate is None else is_duplicate
    targets = [None] * len(params) if gradients is None else gradients
    total = params[0].new_zeros((), dtype=torch.float64)
    for param, reference, gradient, duplicate in zip(params, reference_params, targets, duplicates, strict=True):
        if duplicate and gradient is None:
            continue
        for part in _slices(param.numel()):
            difference = param.view(-1)[part].float() - reference.view(-1)[part].float()
            if gradient is not None:
                gradient.view(-1)[part].add_(difference, alpha=scale)
            if not duplicate:
                total += difference.dot(difference)
    for group in groups:
        dist.all_reduce(total, group=group)
    return total


def _slices(num_elements: int) -> Iterator[slice]:
    return (slice(start, start + SLICE_ELEMENTS) for start in range(0, num_elements, SLICE_ELEMENTS))

"""One adapter: what is added to the output of a frozen linear layer, divided over tensor-parallel ranks as that is.

The rank is small, so that what is communicated is: the ranks exchange A x, [s, b, rank], never anything of the hidden
size. A layer and its adapter read the same input and add up the same output:

==========================  ======================================  ==============================================
                            A [rank, in], B [out, rank]             what ranks exchange of A x (without, with
                                                                    sequence parallelism)
==========================  ======================================  ==============================================
column-parallel             A on every rank, B divided by rows      its gradient is added up; gathered
row-parallel                A divided by columns, B on every rank   added up; added up and scattered
==========================  ======================================  ==============================================
"""

import contextlib
from collections.abc import Callable

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import dropout, linear

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.adapters.targets import COLUMN


class LowRank(torch.nn.Module):
    """scale * B A dropout(x) beside a linear layer W x (Hu et al. 2021, Eq. 3).

    Args:
        weight: this rank's part of W, [out, in] or [out / tp, in] or [out, in / tp]; gives sizes, device and dtype.
        side: which side of W is divided (``targets.TARGETS``).
        settings: rank, scale and dropout.
        tp_group: the ranks that W is divided over.
        sequence_parallel: whether hidden states outside of the pair of layers are a rank's part of the sequence.
    """

    def __init__(
        self, weight: Tensor, side: str, settings: LoRASettings, tp_group: ProcessGroup, *, sequence_parallel: bool
    ) -> None:
        super().__init__()
        rank, (rows, columns) = settings.lora_rank, weight.shape
        assert rank is not None
        self.is_column, self.tp_group = side == COLUMN, tp_group
        self.sequence_parallel = sequence_parallel and tp_group.size() > 1
        self.scale, self.dropout = settings.scale, settings.lora_dropout
        self.lora_a = torch.nn.Parameter(weight.new_zeros((rank, columns)))
        self.lora_b = torch.nn.Parameter(weight.new_zeros((rows, rank)))
        divided, copied = (self.lora_b, self.lora_a) if self.is_column else (self.lora_a, self.lora_b)
        set_tensor_model_parallel_attributes(divided, True, 0 if self.is_column else 1, 1)
        # The engine adds up the gradients of what every rank has a copy of and sees a part of the sequence with.
        copied.sequence_parallel = self.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Of the layer's input what is added to its output, both as the layer has them on this rank.

        [s, b, in], of a row-parallel layer [s, b, in / tp], to [s, b, out / tp] or [s, b, out]; with sequence
        parallelism hidden states are [s / tp, b, ...].
        """
        if self.dropout and self.training:
            with self._draws():
                x = dropout(x, self.dropout)
        return linear(self._exchanged(linear(x, self.lora_a)), self.lora_b)

    def _exchanged(self, low: Tensor) -> Tensor:
        """A x as B takes it."""
        exchange: dict[tuple[bool, bool], Callable[..., Tensor]] = {
            (True, False): copy_to_tensor_model_parallel_region,
            (True, True): gather_from_sequence_parallel_region,
            (False, False): reduce_from_tensor_model_parallel_region,
            (False, True): reduce_scatter_to_sequence_parallel_region,
        }
        return exchange[self.is_column, self.sequence_parallel](low, group=self.tp_group)

    def _draws(self) -> contextlib.AbstractContextManager:
        """Random numbers: the same on all ranks where they read the same input, else each rank's own."""
        is_same = self.is_column and not self.sequence_parallel
        return contextlib.nullcontext() if is_same else get_cuda_rng_tracker().fork()

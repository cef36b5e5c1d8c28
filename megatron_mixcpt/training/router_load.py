"""How evenly the routers of a mixture of experts spread the tokens of each step, for TensorBoard and the terminal.

Counted are the tokens that the student's routers send to each expert, over all ranks and microbatches; whatever the
layers are built from. A step counts on the device and waits for nothing: one all-reduce of 8 bytes for each layer and
expert, and figures that are read where those of the loss are.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from megatron_mixcpt.log_names import EXPERT_LOAD, IDLE_EXPERTS


class RouterLoad:
    """Tokens of each expert of each layer since the last :meth:`take`, on this rank.

    Args:
        num_layers: of the whole model, with or without experts.
        num_experts: of a layer.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._shape = num_layers, num_experts
        self._counts: Tensor | None = None

    def watch(self, chunks: Iterable[nn.Module]) -> None:
        """Count from now on what the routers in ``chunks`` decide; a teacher is not in the tree of its student."""
        for chunk in chunks:
            for module in chunk.modules():
                if isinstance(module, TopKRouter):
                    module.register_forward_hook(self._count)

    def _count(self, router: TopKRouter, inputs: object, output: tuple[Tensor, Tensor]) -> None:
        """Once for each token: a layer that is recomputed runs without gradients first, and a validation always."""
        if not (router.training and torch.is_grad_enabled()):
            return
        if self._counts is None:
            self._counts = torch.zeros(self._shape, dtype=torch.int64, device=output[1].device)
        self._counts[router.layer_number - 1] += output[1].sum(dim=0)

    def take(self) -> dict[str, Tensor]:
        """The figures of all ranks, scalars on the device, and start anew; every rank calls it. One all-reduce."""
        if self._counts is None:  # a stage whose layers have no experts
            self._counts = torch.zeros(self._shape, dtype=torch.int64, device=torch.cuda.current_device())
        dist.all_reduce(self._counts)
        figures = balance(self._counts)
        self._counts = None
        return figures


def balance(counts: Tensor) -> dict[str, Tensor]:
    """Figures of the tokens [layers, experts] of a step, float32 scalars; layers without any are left out.

    The tokens of the largest expert as a multiple of the mean, in the layer where that is largest, and the share of
    experts without tokens, over all layers. 1 and 0 are perfect; 0 and 0 where there are no tokens.
    """
    totals = counts.sum(dim=1)
    is_used = totals > 0
    shares = counts.amax(dim=1) * counts.size(1) / totals.clamp(min=1)
    idle = ((counts == 0).sum(dim=1) * is_used).sum() / (is_used.sum().clamp(min=1) * counts.size(1))
    return {EXPERT_LOAD: shares.amax().float(), IDLE_EXPERTS: idle.float()}

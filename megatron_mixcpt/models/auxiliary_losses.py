"""The routers' auxiliary losses: how much each microbatch counts, and the means that are reported.

A router adds to the gradient of the loss (``router.py``). The losses that we train on are sums, which the engine
divides by the tokens of the global batch (SFT: those of responses; DPO: its pairs). An auxiliary loss is a mean over
the positions of one microbatch; it counts as often as the microbatch has such tokens or pairs, and after the division
the global batch's auxiliary loss is the mean over its microbatches, each with the weight that it has in the loss.

The engine counts positions instead, which is the same only where every position counts in the loss, and reports the sum
over ``get_num_microbatches()``, which is not the number of SFT and DPO, whose batches take as many as they need.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_logging import MoEMetricsTracker
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.log_names import (
    GLOBAL_LOAD_BALANCING_LOSS,
    LOAD_BALANCING_LOSS,
    ROUTER_Z_LOSS,
    SEQUENCE_LOAD_BALANCING_LOSS,
)

Z_LOSS = "z_loss"
# The engine's name of a kind, as in --moe-router-load-balancing-type, and of its value -> the curve.
CURVE_OF_KIND = {
    "aux_loss": LOAD_BALANCING_LOSS,
    "seq_aux_loss": SEQUENCE_LOAD_BALANCING_LOSS,
    "global_aux_loss": GLOBAL_LOAD_BALANCING_LOSS,
}
_CURVE_OF_VALUE = {
    "load_balancing_loss": LOAD_BALANCING_LOSS,
    "seq_load_balancing_loss": SEQUENCE_LOAD_BALANCING_LOSS,
    "global_load_balancing_loss": GLOBAL_LOAD_BALANCING_LOSS,
    Z_LOSS: ROUTER_Z_LOSS,
}


class Microbatch(NamedTuple):
    """What a router has to know of the microbatch that passes through it."""

    weight: float
    """Tokens, or pairs, that the microbatch adds to the number by which the engine divides the global batch's loss."""
    padding: Tensor | None
    """bool [s, b] of this rank, True where no document is; None: nowhere. At least one position must be False."""


class AuxiliaryLosses(MoEMetricsTracker):
    """Stands in the place of the engine's tracker: its ``report`` is called after each training step, on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.microbatch = Microbatch(1.0, None)
        """Of the forward pass under way."""
        self.latest: dict[str, Tensor] = {}
        """What was reported last: curve -> scalar, the mean over layers."""
        self._sums: dict[str, Tensor] = {}
        self._group: ProcessGroup | None = None

    def start(self, curves: Sequence[str], num_layers: int, group: ProcessGroup | None, device: torch.device) -> None:
        """Begin a run.

        Args:
            curves: what is reported, the same and in the same order on every rank.
            num_layers: of the whole model.
            group: all ranks of the run; None: the default group.
            device: where the routers are.
        """
        self._sums = {curve: torch.zeros(2, num_layers, device=device) for curve in curves}
        self._group = group

    def add(self, name: str, layer_number: int, value: Tensor, weight: float, group_size: int) -> None:
        """Add one layer's loss of one microbatch; does nothing between runs.

        Args:
            name: the engine's.
            layer_number: in the model, from 1.
            value: scalar, this rank's part of a sum over the ranks that share the loss.
            weight: of the microbatch.
            group_size: number of those ranks.
        """
        sums = self._sums.get(_CURVE_OF_VALUE[name])
        if sums is not None:
            sums[0, layer_number - 1] += value.detach() * weight
            sums[1, layer_number - 1] += weight / group_size

    def report(  # type: ignore[override] # named as the engine names them; it hands over more that is not needed here
        self,
        loss_scale: float,
        iteration: int,
        writer: Any = None,
        wandb_writer: Any = None,
        per_layer_logging: bool = False,
        *,
        total_loss_dict: dict[str, Tensor] | None = None,
        **_: Any,
    ) -> str:
        """Write the means of the step to TensorBoard and Weights & Biases; one all-reduce over all ranks.

        ``loss_scale``, one over the engine's number of microbatches, is not used: the means are weighted.
        """
        means = self.take()
        self.latest = {curve: layers.nanmean() for curve, layers in means.items()}
        for curve, layers in means.items():
            mean = self.latest[curve]
            if total_loss_dict is not None:
                total_loss_dict[curve] = total_loss_dict.get(curve, 0.0) + mean
            named = {curve: mean}
            if per_layer_logging:
                named |= {f"{curve} layer {number}": value for number, value in enumerate(layers, 1)}
            for name, value in named.items():
                if writer is not None:
                    writer.add_scalar(name, value, iteration)
                if wandb_writer is not None:
                    wandb_writer.log({name: value}, iteration)
        return ""

    def take(self) -> dict[str, Tensor]:
        """Means over the microbatches since the last call: curve -> float32 [layers], NaN for layers without experts.

        Collective over all ranks where anything is reported.
        """
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        dist.all_reduce(sums, group=self._group)
        self.clear()
        return dict(zip(self._sums, sums[:, 0] / sums[:, 1], strict=True))

    def clear(self) -> None:
        """Forget what was added, as the engine asks after a validation."""
        for sums in self._sums.values():
            sums.zero_()


AUXILIARY_LOSSES = AuxiliaryLosses()
"""Of this process, as the engine's tracker is."""

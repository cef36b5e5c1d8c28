"""Which of the routers' auxiliary losses a run has, and where the engine finds their means."""

import argparse
from itertools import zip_longest

import torch
from megatron.core.transformer.moe.moe_logging import set_moe_metrics_tracker

from megatron_mixcpt.log_names import ROUTER_Z_LOSS
from megatron_mixcpt.models.auxiliary_losses import AUXILIARY_LOSSES, CURVE_OF_KIND


def report_auxiliary_losses(args: argparse.Namespace) -> None:
    """Let the engine report the auxiliary losses that ``args`` ask for, and no others.

    The engine would show a load-balancing loss of 0 for every mixture of experts that is trained without one.
    """
    AUXILIARY_LOSSES.start(curves_of(args), args.num_layers, None, torch.device(torch.cuda.current_device()))
    set_moe_metrics_tracker(AUXILIARY_LOSSES)


def curves_of(args: argparse.Namespace) -> list[str]:
    """The auxiliary losses' curves; a kind and its coefficient are values or lists in the engine's arguments."""
    if args.num_experts is None:
        return []
    kinds, coefficients = (
        value if isinstance(value, list) else [value]
        for value in (args.moe_router_load_balancing_type, args.moe_aux_loss_coeff)
    )
    curves = [
        CURVE_OF_KIND[kind] for kind, factor in zip_longest(kinds, coefficients) if kind in CURVE_OF_KIND and factor
    ]
    return curves + ([] if args.moe_z_loss_coeff is None else [ROUTER_Z_LOSS])

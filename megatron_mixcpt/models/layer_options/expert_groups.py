"""The choice of experts from the best groups of experts, as transformers makes it.

DeepSeek-V3, and those that took over its router, score a group by the sum of its two best experts (arXiv:2412.19437,
section 2.1.2), DeepSeek-V2 by its best one (arXiv:2405.04434, section 2.2.2). The engine takes as many as a token has
experts for each chosen group, which is the same number for few models (``group_limited_topk`` in
megatron/core/transformer/moe/moe_utils.py).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor


class ExpertGroups:
    """What the engine's router asks for the experts of each token, where it would otherwise choose itself.

    It asks where it has a ``router_replay``, whose other uses, to record a choice and repeat it, are not served here.

    Args:
        num_scored: how many experts of a group, the best, its score is the sum of.
    """

    def __init__(self, num_scored: int) -> None:
        self.num_scored = num_scored
        self.layer_number: int | None = None

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int,
        group_topk: int,
        default_compute_topk: Callable[..., Any],
    ) -> tuple[Tensor, Tensor]:
        """The best ``topk`` experts of the best ``group_topk`` groups.

        Args:
            scores: [t, experts], each expert's with its bias.
            default_compute_topk: the engine's own choice, not used.

        Returns:
            Their scores and numbers, [t, topk] both.
        """
        del default_compute_topk
        by_group = scores.unflatten(1, (num_groups, -1))
        best_groups = by_group.topk(self.num_scored, dim=-1).values.sum(-1).topk(group_topk, dim=-1).indices
        is_left = scores.new_zeros(by_group.shape[:2]).scatter(1, best_groups, 1.0).bool()
        return by_group.masked_fill(~is_left[..., None], float("-inf")).flatten(1).topk(topk, dim=-1)

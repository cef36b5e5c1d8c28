"""Documents within a sequence, as layers that pass a state from token to token need them: where each one begins."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.models.context_parallel import gather_sequence


def document_starts(attention_mask: Tensor | None, cp_group: ProcessGroup | None) -> Tensor | None:
    """The position of the first token of each token's document; None where there is no mask.

    One all-gather where context-parallel ranks share the sequence.

    Args:
        attention_mask: [b or 1, 1, s/cp, s], of causal attention within documents, as attention takes it: bool with
            True where a token may not be seen, or what is added to the scores, 0 where it may.
        cp_group: the ranks that share the sequence, each with the rows of its tokens; None: none do.

    Returns:
        int64 [b or 1, s] on the mask's device, of the whole sequence in its order.
    """
    if attention_mask is None:
        return None
    seen = ~attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    starts = seen[:, 0].to(torch.uint8).argmax(dim=-1)  # the first of several largest
    return gather_sequence(starts.transpose(0, 1).contiguous(), cp_group).transpose(0, 1)

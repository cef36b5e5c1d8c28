"""Which samples are distilled: a pure function of the seed and the sample's index in the training stream.

Nothing is drawn in sequence, so a run that is resumed, or resharded to another number of ranks or another microbatch
size, distils the same samples (the paper's section 3.3 distils a random half).
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def is_distilled(sample_index: Tensor, *, fraction: float, seed: int) -> Tensor:
    """Choose each sample independently with probability ``fraction``.

    Args:
        sample_index: integer tensor of any shape, the samples' positions in the training stream.
        fraction: share of samples to choose, in [0, 1].
        seed: any integer; another seed chooses other samples.

    Returns:
        bool tensor of ``sample_index``'s shape and device.
    """
    chosen = [_uniform(int(index), seed) < fraction for index in sample_index.flatten().tolist()]
    return torch.tensor(chosen, dtype=torch.bool, device=sample_index.device).view(sample_index.shape)


def _uniform(index: int, seed: int) -> float:
    """A number in [0, 1) from two integers: splitmix64 (Steele, Lea and Flood, OOPSLA 2014), top 53 bits."""
    value = (index + 1) * 0x9E3779B97F4A7C15 + _mix(seed & _MASK)
    return (_mix(value & _MASK) >> 11) / (1 << 53)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)

"""Where the engine wants new parameters."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


def parameter_device(config: TransformerConfig) -> str | int:
    """The engine's current device, or the CPU for ``--use-cpu-initialization``."""
    return "cpu" if config.use_cpu_initialization else torch.cuda.current_device()

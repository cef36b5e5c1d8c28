"""The engine's process and parallel groups, for programs that run its model without its training program."""

import os
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_mixcpt.errors import ConfigError


def start_ranks(tp_size: int = 1, pp_size: int = 1, ep_size: int = 1) -> None:
    """Join torchrun's ranks, or be the only one, and make the engine's groups; copies of the model are data parallel.

    Raises ConfigError where the number of ranks is not a multiple of what one copy of the model needs.
    """
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    needed = tp_size * pp_size * ep_size
    if num_ranks % needed:
        layout = f"TP {tp_size} x PP {pp_size}" + (f" x EP {ep_size}" if ep_size > 1 else "")
        raise ConfigError(f"{layout} needs {needed} processes or a multiple, not {num_ranks}: use torchrun")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    if not dist.is_initialized():
        # The group is told its device, as the engine's training tells it: a barrier would have to guess it otherwise.
        if num_ranks > 1:
            dist.init_process_group("nccl", device_id=device)
        else:
            rendezvous = f"file://{tempfile.mkdtemp()}/rendezvous"
            dist.init_process_group("nccl", init_method=rendezvous, rank=0, world_size=1, device_id=device)
    parallel_state.initialize_model_parallel(tp_size, pp_size, expert_model_parallel_size=ep_size)
    model_parallel_cuda_manual_seed(1)

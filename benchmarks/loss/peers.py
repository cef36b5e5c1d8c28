"""What the losses are compared with beside the engine's cross-entropy: what a user would take from elsewhere.

None of the peers swaps logits: theirs is the reverse KL of the plain teacher, which is less work. They are installed
without their dependencies into a separate folder, which only the measuring ranks see; torch and the engine are
those of this environment, so that all losses run on the same version.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.step.transformers_step import mixcpt_loss as loss_as_written

# The last four are what ModelOpt imports on the way to its loss.
REQUIREMENTS = [
    *("trl==1.16.0", "liger-kernel==0.8.5", "nvidia-modelopt==0.47.0"),
    *("omegaconf==2.4.0", "pulp", "orloge", "cpsat-logutils"),
]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of student and teacher logits ``[n, v / tp]`` and labels ``[n]``: the mean of NTP and KL, weighted."""


def install(folder: Path) -> None:
    """Fetch the peers into ``folder`` unless they are there."""
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == " ".join(REQUIREMENTS):
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
    if subprocess.run([*pip, *REQUIREMENTS], check=False).returncode:
        sys.exit(f"error: pip could not install the peers into {folder} (its message is above)")
    stamp.write_text(" ".join(REQUIREMENTS), encoding="utf-8")


def peer_losses(folder: Path, alpha: float, engine_loss: Loss) -> dict[str, Loss]:
    """On a rank, with the CPU emulation in place: the peers that work at as many ranks as there are.

    ``engine_loss`` is the next-token loss for ModelOpt, which has no such loss.
    """
    sys.path.append(str(folder))  # last: what this environment has wins
    world_size = dist.get_world_size()
    losses = {"ModelOpt": modelopt_loss(world_size, alpha, engine_loss)}
    if world_size == 1:
        losses |= {"TRL": trl_loss(alpha), "as written": lambda *inputs: loss_as_written(*inputs)}
    return losses


def modelopt_loss(world_size: int, alpha: float, engine_loss: Loss) -> Loss:
    """Its loss for Megatron on sharded logits, and the engine's cross-entropy."""
    from megatron.core import parallel_state
    from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=world_size)
    divergence = LogitsKLLoss(SimpleNamespace(tensor_model_parallel_size=world_size), reverse=True)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        # The divergence first: the engine's loss overwrites float32 logits.
        part, *_ = divergence(student.unsqueeze(1), teacher.unsqueeze(1))
        if world_size > 1:
            dist.all_reduce(part.detach())
        return alpha * engine_loss(student, teacher, labels).mean() + (1 - alpha) * part.mean()

    return loss


def trl_loss(alpha: float) -> Loss:
    """The loss of its trainer for generalized knowledge distillation, and torch's cross-entropy."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        divergence = GKDTrainer.generalized_jsd_loss(student.unsqueeze(0), teacher.unsqueeze(0), beta=1.0)
        return alpha * cross_entropy(student.float(), labels) + (1 - alpha) * divergence / len(labels)

    return loss


def liger(folder: Path, alpha: float, chunk_tokens: int) -> Callable[..., Tensor]:
    """Liger's fused linear loss: of hidden states, weight, the teacher's two, and labels."""
    sys.path.append(str(folder))
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    weights = {"weight_hard_loss": alpha, "weight_soft_loss": 1 - alpha}
    return LigerFusedLinearJSDLoss(**weights, beta=1.0, chunk_size=chunk_tokens)

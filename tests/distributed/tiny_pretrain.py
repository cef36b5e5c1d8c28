"""An entry script in miniature: the engine's unmodified `pretrain()` trains a tiny GPT on numbers that count.

It shows the order an entry script must keep: the emulation first, at the top level, then the engine. torchrun runs it
as a script; `train` is for ranks that have a process group already, as often as they like.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

import os  # noqa: E402
import sys  # noqa: E402
from unittest import mock  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core.enums import ModelType  # noqa: E402
from megatron.training import get_args, pretrain  # noqa: E402
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args  # noqa: E402
from megatron.training.arguments import parse_and_validate_args  # noqa: E402
from megatron.training.training import destroy_global_state  # noqa: E402

from megatron_mixcpt.models.layer_specs import gpt_layer_spec  # noqa: E402
from megatron_mixcpt.training.engine.patches import change_engine  # noqa: E402
from megatron_mixcpt.training.engine.repairs import repairs  # noqa: E402

os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"  # the engine asks for it wherever there is tensor parallelism

GLOBAL_BATCH_SIZE = 4
MODEL_FLAGS = (
    "--num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --group-query-attention "
    "--num-query-groups 2 --add-qkv-bias --disable-bias-linear --swiglu --normalization RMSNorm --qk-layernorm "
    "--position-embedding-type rope --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 "
    "--seq-length 32 --max-position-embeddings 32 --tokenizer-type NullTokenizer --vocab-size 128 "
    "--make-vocab-size-divisible-by 1"  # no padding columns: they take probability, and TP2 would add some
).split()
TRAINING_FLAGS = (
    f"--micro-batch-size 1 --global-batch-size {GLOBAL_BATCH_SIZE} --lr 1e-3 --lr-decay-style constant "
    "--log-interval 1 --eval-interval 100 --eval-iters 0 --num-workers 0 --seed 7 --split 100,0,0"
).split()
# What a machine without Transformer Engine, Apex and CUDA kernels needs.
CPU_FLAGS = (
    "--transformer-impl local --no-gradient-accumulation-fusion --no-masked-softmax-fusion --no-rope-fusion"
).split()


class CountingDataset(torch.utils.data.Dataset):
    """Sample i counts up from a start in steps of 1, 2 or 3, modulo the vocabulary size."""

    def __init__(self, num_samples: int, length: int, vocab_size: int) -> None:
        self.shape = (num_samples, length, vocab_size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        _, length, vocab_size = self.shape
        text = (index * 17 + (index % 3 + 1) * torch.arange(length + 1)) % vocab_size
        return {"tokens": text[:-1], "labels": text[1:]}


def datasets(num_samples: list[int], vp_stage: int | None = None) -> list[CountingDataset]:
    args = get_args()
    return [CountingDataset(max(1, num), args.seq_length, args.vocab_size) for num in num_samples]


datasets.is_distributed = True


class ForwardStep:
    """The engine's forward step; it keeps every loss it has seen."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def __call__(self, batches, model):
        batch = next(batches)
        tokens, labels = (batch[name].cuda(non_blocking=True) for name in ("tokens", "labels"))
        positions = torch.arange(tokens.size(1), device=tokens.device)[None]
        return model(tokens, positions, None, labels=labels), self.loss

    def loss(self, losses: torch.Tensor):
        total, num_tokens = losses.float().sum(), torch.tensor(losses.numel(), dtype=torch.int, device=losses.device)
        self.losses.append(total.item() / losses.numel())
        return total, num_tokens, {"lm loss": torch.stack([total.detach(), num_tokens.float()])}


def train(*flags: str) -> list[float]:
    """Run `pretrain()` with these flags beside the common ones; the mean loss of each iteration, on every rank."""
    forward_step = ForwardStep()
    argv = [sys.argv[0], *MODEL_FLAGS, *TRAINING_FLAGS, *CPU_FLAGS, "--calculate-per-token-loss", *flags]
    with mock.patch.object(sys, "argv", argv):
        args = parse_and_validate_args()
    model_config = gpt_config_from_args(args)
    model_config.transformer_layer_spec = gpt_layer_spec
    change_engine(repairs(args))
    container = pretrain_cfg_container_from_args(args, model_config)
    pretrain(container, datasets, ModelType.encoder_or_decoder, forward_step)
    num_microbatches = GLOBAL_BATCH_SIZE // args.data_parallel_size
    destroy_global_state()
    return mean_over_ranks(forward_step.losses, num_microbatches)


def mean_over_ranks(losses: list[float], num_microbatches: int) -> list[float]:
    """Only ranks of the last stage have losses; those of a tensor-parallel group have the same ones."""
    of_ranks: list[list[float]] = [[]] * dist.get_world_size()
    dist.all_gather_object(of_ranks, losses)
    table = torch.tensor([losses for losses in of_ranks if losses], dtype=torch.float64)
    return table.view(len(table), -1, num_microbatches).mean(dim=(0, 2)).tolist()


if __name__ == "__main__":
    losses = train(*sys.argv[1:])
    if os.environ["RANK"] == "0":
        print("losses", *losses)

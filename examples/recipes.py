"""The paper's settings (arXiv 2407.10804, section 3.1 and its appendix), shared by the recipes beside this file.

Those for adapters are not the paper's: batches that one GPU gets through, and learning rates ten times as high.

A recipe, such as ``sft_llama3.sh``, adds what differs for its model and calls :func:`run`. Each recipe is a shell
script that starts torchrun and a Python program that torchrun runs; README.md in this folder explains how to use one.
"""

import importlib
from typing import Literal

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()  # Before Megatron is imported, also in the processes that write checkpoints; no-op with a GPU.

from megatron_mixcpt.training import recipe  # noqa: E402

_COMMON = """
    --use-distributed-optimizer
    --bf16
    --adam-beta1 0.9 --adam-beta2 0.95 --clip-grad 1.0
    --log-interval 1
"""

_LAYOUT = f"""{_COMMON}
    --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 1
    --overlap-grad-reduce --overlap-param-gather
"""

_OBJECTIVE = """
    --distillation lssd --alpha 0.8
    --seq-length 2048
"""

PRETRAIN = f"""{_LAYOUT}{_OBJECTIVE}
    --global-batch-size 1920 --micro-batch-size 2
    --lr 2e-5 --min-lr 5e-6 --lr-decay-style cosine --lr-warmup-fraction 0.01
    --weight-decay 0.1
    --save-interval 100
"""

PRETRAIN_LORA = f"""{_COMMON}{_OBJECTIVE}
    --lora-rank 16
    --global-batch-size 128 --micro-batch-size 1 --loss-chunk-tokens 2048
    --lr 2e-4 --min-lr 5e-5 --lr-decay-style cosine --lr-warmup-fraction 0.01
    --weight-decay 0
    --save-interval 100
"""

_ALIGNMENT = f"""{_LAYOUT}
    --epochs 2 --global-batch-size 128 --micro-batch-size 1
    --min-lr 0 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --weight-decay 0
    --save-interval 50
"""

SFT = f"""{_ALIGNMENT}
    --seq-length 2048
"""

DPO = f"""{_ALIGNMENT}
    --seq-length 4096  # Both responses of a pair share a row.
"""

_STAGES = {
    "pretrain": ("megatron_mixcpt.training.pretraining.cpt", recipe.PRETRAIN_PATHS),
    "sft": ("megatron_mixcpt.training.alignment.sft", recipe.SFT_PATHS),
    "dpo": ("megatron_mixcpt.training.alignment.dpo", recipe.DPO_PATHS),
}


def run(stage: Literal["pretrain", "sft", "dpo"], flags: str) -> None:
    """Run a trainer with ``flags``, then the paths of the environment, then the command line; the last one wins."""
    module, paths = _STAGES[stage]
    recipe.run_recipe(importlib.import_module(module).main, flags, paths)

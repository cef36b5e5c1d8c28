"""Trainings of the tiny worlds with Transformer Engine's layers or ours, each on ranks of its own."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_mixcpt.testing import RankFailedError, run_distributed
from tests.distributed.tiny_run import curves

LOCAL = ("--transformer-impl", "local", "--no-rope-fusion", "--no-masked-softmax-fusion", "--no-bias-dropout-fusion")


def train(num_ranks: int, trainer: str, argv: Sequence[str], log_dir: Path, *, stand_ins: bool = True) -> dict:
    """The curves of a run: key -> value per iteration.

    Args:
        num_ranks: ranks.
        trainer: ``cpt``, ``sft`` or ``dpo``.
        argv: its command line.
        log_dir: for TensorBoard's files.
        stand_ins: let Transformer Engine's layers compute, see ``stand_ins.py``.
    """
    arguments = (trainer, [*argv, "--tensorboard-dir", str(log_dir)], stand_ins, None)
    run_distributed(train_rank, num_ranks, *arguments, cpu_emulation=True, timeout_s=290)
    return curves(log_dir)


def last_words(num_ranks: int, trainer: str, argv: Sequence[str], folder: Path) -> list[str]:
    """The last line that each rank of a run that fails has on its stderr, which is kept in ``folder``."""
    with pytest.raises(RankFailedError):
        run_distributed(
            train_rank, num_ranks, trainer, list(argv), False, str(folder), cpu_emulation=True, timeout_s=290
        )
    texts = [(folder / f"{rank}.stderr").read_text().strip() for rank in range(num_ranks)]
    return [text.splitlines()[-1].removeprefix(f"[rank{rank}]: ") if text else "" for rank, text in enumerate(texts)]


def train_rank(trainer: str, argv: list[str], stand_ins: bool, stderr_folder: str | None) -> None:
    """On each rank: what the tool does. A failure ends the process at once, its traceback on stderr."""
    if stderr_folder:
        file = open(Path(stderr_folder, f"{os.environ['RANK']}.stderr"), "w")
        os.dup2(file.fileno(), 2)
    from megatron_mixcpt.training.alignment import dpo, sft
    from megatron_mixcpt.training.pretraining import cpt

    if stand_ins:
        from tests.transformer_engine.stand_ins import install

        install()
    {"cpt": cpt, "sft": sft, "dpo": dpo}[trainer].main(argv)

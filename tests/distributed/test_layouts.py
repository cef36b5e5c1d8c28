"""Layouts, both ways: what is refused is what the engine would refuse, and what is accepted trains.

The planner, ``--dry-run --assume-ranks`` on one process, and the engine are asked about a grid of layouts; one that
is accepted takes a step on real ranks.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from megatron_mixcpt.errors import MixCPTError
from megatron_mixcpt.flags import build_parser, settings_from
from megatron_mixcpt.parallel_sizes import ParallelSizes
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.shapes import model_shape
from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_run import SEQ_LENGTH, curves, flags, make_world, train_rank

TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
# The model has 4 layers, 12 heads in 6 groups and 72 MLP columns. Ranks, and the layout's flags.
GRID = [
    *((tensor, f"{TP} {tensor}") for tensor in (1, 2, 3, 4, 5, 6, 8, 12, 24)),
    *((pipeline, f"{PP} {pipeline}") for pipeline in (2, 3, 4, 8)),
    *((context, f"{CP} {context}") for context in (2, 3)),
    *((ranks, f"{TP} 2 {PP} 2") for ranks in (2, 4, 6, 8)),
    (2, f"{TP} 2 --sequence-parallel"),
    (1, "--sequence-parallel"),
    (1, "--micro-batch-size 2"),
    (1, "--micro-batch-size 3"),
    (3, "--global-batch-size 4"),
    (3, "--global-batch-size 6"),
    (2, f"{PP} 2 --num-virtual-stages-per-pipeline-rank 2"),
    (2, f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1"),
    (2, f"{PP} 2 --num-layers-per-virtual-pipeline-stage 3"),
    (1, "--num-virtual-stages-per-pipeline-rank 2"),
    (1, "--num-virtual-stages-per-pipeline-rank 1"),
    (1, "--recompute-activations"),
    (1, "--recompute-activations --recompute-num-layers 1"),
    (1, "--recompute-granularity selective --recompute-modules mlp core_attn"),
    (1, "--recompute-granularity selective --recompute-method uniform"),
    (1, "--recompute-granularity full"),
    (1, "--recompute-granularity full --recompute-method block"),
    (1, "--recompute-granularity full --recompute-method block --recompute-num-layers 2"),
    (1, "--recompute-method uniform"),
    (1, "--seq-length 200000"),
    (1, "--seq-length 200000 --max-position-embeddings 200000"),
]
# Of flags that the planner does not have.
TRAINERS_GRID = [
    (2, f"{PP} 2 --decoder-first-pipeline-num-layers 3"),
    (2, f"{PP} 2 --decoder-first-pipeline-num-layers 4"),
    (2, f"{PP} 2 --decoder-last-pipeline-num-layers 0"),
    (3, f"{PP} 3 --decoder-first-pipeline-num-layers 2 --decoder-last-pipeline-num-layers 1"),
    (3, f"{PP} 3 --decoder-first-pipeline-num-layers 2 --decoder-last-pipeline-num-layers 2"),
    (2, f"{PP} 2 --decoder-first-pipeline-num-layers 3 --account-for-loss-in-pipeline-split"),
    (3, f"{PP} 3 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split"),
    (4, f"{PP} 4 --account-for-loss-in-pipeline-split"),
    (2, f"{PP} 2 --pipeline-model-parallel-layout Et|tttL"),
    (2, f"{PP} 2 --pipeline-model-parallel-layout Et|ttL"),
    (2, f"{PP} 2 --pipeline-model-parallel-layout Et|tt|tL"),
    (2, f"{PP} 2 --pipeline-model-parallel-layout Et|tttx"),
    (1, "--padded-vocab-size 384"),
    (2, f"{TP} 2 --padded-vocab-size 387"),
    (2, f"{TP} 2 --padded-vocab-size 388"),
    (2, "--expert-model-parallel-size 2"),
]
BOTH_WAYS = GRID[::5]
# The engine refuses these later: when it builds the layers (get_num_layers_to_build), in the first step of the
# interleaved schedule (schedules.py), or when it divides a sequence over ranks (tensor_parallel/mappings.py).
REFUSED_LATER = [
    (2, f"{PP} 2 --num-virtual-stages-per-pipeline-rank 3"),
    (2, f"{PP} 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 3"),
    (3, f"{TP} 3 --sequence-parallel"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_plan_the_dry_run_and_the_engine_agree(world: Path, tmp_path: Path) -> None:
    run_distributed(ask_trainer_and_engine, 1, str(world), str(tmp_path / "said.json"), cpu_emulation=True)
    said: dict[str, list[str]] = json.loads((tmp_path / "said.json").read_text())
    ours = [refusal_of_the_plan(world, *layout) for layout in GRID] + said["dry run"][: len(TRAINERS_GRID)]
    cases = zip(GRID + TRAINERS_GRID, ours, said["engine"], strict=True)
    different = [case for case in cases if bool(case[1]) != bool(case[2])]
    assert not different, "\n".join(
        f"{layout}: we say {we!r}, the engine {engine!r}" for layout, we, engine in different
    )
    assert said["dry run"][-len(BOTH_WAYS) :] == said["real start"]
    assert not [line for line in said["dry run"] if "the engine refuses" in line or "\n" in line]
    assert 15 < sum(map(bool, ours)) < len(ours) - 15  # the grid has both


@pytest.mark.parametrize("layout", REFUSED_LATER)
def test_the_plan_refuses_what_the_engine_would_refuse_later(world: Path, layout: tuple[int, str]) -> None:
    assert refusal_of_the_plan(world, *layout)


def refusal_of_the_plan(world: Path, num_ranks: int, layout: str) -> str:
    """What the plan refuses this layout with; empty where it accepts it."""
    shared = f"--num-gpus {num_ranks} --seq-length {SEQ_LENGTH} --global-batch-size 4"
    try:
        arguments = build_parser(None, Layout).parse_args(f"{shared} {layout}".split())
        PlannedRun.of(model_shape(str(world / "llama")), settings_from(arguments, Layout))
    except MixCPTError as error:
        return str(error)
    return ""


def ask_trainer_and_engine(world: str, output: str) -> None:
    """What each layout is refused with: by a dry run, by a real start, and by the engine alone."""
    from megatron_mixcpt.training.pretraining import arguments

    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    arguments.plan_run = arguments.mixture_contents = lambda *_: {}
    assumed = [(1, f"--dry-run --assume-ranks {ranks} {layout}") for ranks, layout in TRAINERS_GRID + BOTH_WAYS]
    said = {"dry run": refusals(world, assumed), "real start": refusals(world, BOTH_WAYS)}
    # The engine alone: nothing of ours looks at the layout.
    arguments.checked_sizes = lambda settings: ParallelSizes()
    arguments.check_batches = arguments.check_evaluation = lambda *_: None
    said["engine"] = refusals(world, GRID + TRAINERS_GRID)
    Path(output).write_text(json.dumps(said))


def refusals(world: str, grid: list[tuple[int, str]]) -> list[str]:
    """What the trainer's command line is refused with on so many ranks, by layout; empty where it is accepted."""
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.training.pretraining.arguments import parse_run

    said = []
    for num_ranks, layout in grid:
        os.environ["WORLD_SIZE"] = str(num_ranks)
        try:
            parse_run([*flags(Path(world), iterations=1), *layout.split()])
            said.append("")
        except MixCPTError as error:
            said.append(str(error))
        destroy_global_vars()
        destroy_num_microbatches_calculator()
    return said


TRAINED = f"{PP} 2 {TP} 2 --sequence-parallel --decoder-first-pipeline-num-layers 3"


def test_what_a_dry_run_accepts_takes_a_step(world: Path, tmp_path: Path) -> None:
    run_distributed(dry_run_then_train, 4, str(world), str(tmp_path), cpu_emulation=True, timeout_s=240)


def dry_run_then_train(world: str, log_dir: str) -> None:
    """On each of four ranks: first a dry run, then one iteration."""
    argv = [*flags(Path(world), iterations=1), *TRAINED.split()]
    train_rank([*argv, "--dry-run", "--assume-ranks", "4"])
    forget_the_run()
    train_rank([*argv, "--tensorboard-dir", log_dir])
    if dist.get_rank() == dist.get_world_size() - 1:
        assert all(np.isfinite(curves(Path(log_dir))["loss"]))


def forget_the_run() -> None:
    """Undo what a dry run leaves behind in the engine's modules."""
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.global_vars import destroy_global_vars

    destroy_global_vars()
    destroy_num_microbatches_calculator()

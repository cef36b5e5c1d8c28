"""tools/plan.py accepts the layouts that the engine accepts: both are asked about a grid of layouts."""

import json
import os
from pathlib import Path

import pytest

from megatron_mixcpt.errors import MixCPTError
from megatron_mixcpt.flags import build_parser, settings_from
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.shapes import model_shape
from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_run import SEQ_LENGTH, flags, make_world

# The model has 4 layers, 12 heads in 6 groups and 72 MLP columns. Ranks, and the layout's flags.
GRID = [
    *((tensor, f"--tensor-model-parallel-size {tensor}") for tensor in (1, 2, 3, 4, 5, 6, 8, 12, 24)),
    *((pipeline, f"--pipeline-model-parallel-size {pipeline}") for pipeline in (2, 3, 4, 8)),
    *((context, f"--context-parallel-size {context}") for context in (2, 3)),
    *((ranks, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2") for ranks in (2, 4, 6, 8)),
    (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    (1, "--sequence-parallel"),
    (1, "--micro-batch-size 2"),
    (1, "--micro-batch-size 3"),
    (3, "--global-batch-size 4"),
    (3, "--global-batch-size 6"),
    (2, "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"),
    (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
    (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 3"),
    (1, "--num-virtual-stages-per-pipeline-rank 2"),
    (1, "--num-virtual-stages-per-pipeline-rank 1"),
    (1, "--recompute-activations"),
    (1, "--recompute-activations --recompute-num-layers 1"),
    (1, "--recompute-granularity selective --recompute-modules mlp layernorm"),
    (1, "--recompute-granularity selective --recompute-method uniform"),
    (1, "--recompute-granularity full"),
    (1, "--recompute-granularity full --recompute-method block"),
    (1, "--recompute-granularity full --recompute-method block --recompute-num-layers 2"),
    (1, "--recompute-method uniform"),
    (1, "--seq-length 200000"),
    (1, "--seq-length 200000 --max-position-embeddings 200000"),
]
# The engine refuses these later: when it builds the layers (get_num_layers_to_build), in the first step of the
# interleaved schedule (schedules.py), or when it divides a sequence over ranks (tensor_parallel/mappings.py).
REFUSED_LATER = [
    (2, "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 3"),
    (2, "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 3"),
    (3, "--tensor-model-parallel-size 3 --sequence-parallel"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_plan_and_the_engine_agree(world: Path, tmp_path: Path) -> None:
    run_distributed(ask_the_engine, 1, str(world), str(tmp_path / "said.json"), cpu_emulation=True, timeout_s=600)
    engine: list[str] = json.loads((tmp_path / "said.json").read_text())
    plan = [refusal_of_the_plan(world, *layout) for layout in GRID]
    different = [case for case in zip(GRID, plan, engine, strict=True) if bool(case[1]) != bool(case[2])]
    assert not different, "\n".join(
        f"{layout}: plan {said or 'accepts'}, engine {it}" for layout, said, it in different
    )
    assert 10 < sum(map(bool, plan)) < len(GRID) - 10  # the grid has both


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


def ask_the_engine(world: str, output: str) -> None:
    """What the engine refuses each layout with, the trainer's own check of it left out."""
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.training.pretraining import arguments

    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    for name in ("check_layout", "check_batches", "plan_run", "mixture_contents"):
        setattr(arguments, name, lambda *_: {})
    said = []
    for num_ranks, layout in GRID:
        os.environ["WORLD_SIZE"] = str(num_ranks)
        try:
            argv = [*flags(Path(world), iterations=1), "--transformer-impl", "transformer_engine", *layout.split()]
            run = arguments.parse_run(argv)
            gpt_config_from_args(run.args)
            said.append("")
        except (MixCPTError, AssertionError, ValueError) as error:
            said.append(str(error) or "an assertion")
        destroy_global_vars()
        destroy_num_microbatches_calculator()
    Path(output).write_text(json.dumps(said))

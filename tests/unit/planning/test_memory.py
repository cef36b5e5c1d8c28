"""The memory plan against sums done by hand, and its advice."""

import dataclasses

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.objective import Objective
from megatron_mixcpt.planning.activations import attention_columns
from megatron_mixcpt.planning.advice import peak_bytes, suggest
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.memory import plan_memory
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape
from megatron_mixcpt.planning.tool import report

# Hidden size 8, MLP 16, 4 heads in 2 groups of 2 channels, 10 tokens: a layer has 8 x (8 + 8 + 8) + 3 x 8 x 16 + 16 =
# 592 parameters.
SMALL = ModelShape(4, 8, 16, 4, 2, 10, 2, 2048)
LLAMA = PRESETS["llama-3-8b"]
GIB = 2**30
PLAIN = Objective(distillation="none")


def test_what_is_always_there_follows_from_the_parameters() -> None:
    (stage,) = plan_memory(SMALL, Layout(num_gpus=2, bf16=True, use_distributed_optimizer=True))
    parameters = 4 * 592 + 2 * 80 + 8
    assert SMALL.num_parameters == parameters
    assert (stage.student, stage.teacher, stage.gradients) == (2 * parameters, 2 * parameters, 4 * parameters)
    assert stage.optimizer == 12 * parameters // 2  # a float32 copy and two moments, over two ranks


def test_stages_hold_their_own_part() -> None:
    first, last = plan_memory(SMALL, Layout(pipeline_model_parallel_size=2, bf16=True, objective=PLAIN))
    assert first.student == 2 * (2 * 592 + 80) and last.student == 2 * (2 * 592 + 80 + 8)
    assert first.teacher == last.teacher == first.logits == 0
    tied = dataclasses.replace(SMALL, tied=True)
    assert plan_memory(tied, Layout(bf16=True))[0].student == 2 * tied.num_parameters
    assert (
        plan_memory(tied, Layout(pipeline_model_parallel_size=2, bf16=True))[1].student == last.student
    )  # a copy at each end


def test_earlier_stages_hold_more_microbatches() -> None:
    layout = Layout(pipeline_model_parallel_size=4, global_batch_size=1920)

    def in_flight(layout: Layout) -> list[int]:
        return [PlannedRun.of(LLAMA, layout).chunks_in_flight(stage) for stage in range(4)]

    assert in_flight(layout) == [4, 3, 2, 1]
    assert in_flight(dataclasses.replace(layout, global_batch_size=2)) == [2, 2, 2, 1]
    # Interleaved: (stages - 1) x 2 + (chunks - 1) x stages before the first backward pass, and the one at work.
    for two_chunks in ({"num_virtual_stages_per_pipeline_rank": 2}, {"num_layers_per_virtual_pipeline_stage": 4}):
        assert in_flight(dataclasses.replace(layout, **two_chunks)) == [11, 9, 7, 5]


@pytest.mark.parametrize(
    "objective",
    [Objective(alpha=1.0), Objective(distillation_fraction=0.0), Objective(distillation="l2", l2_coefficient=0.0)],
)
def test_a_teacher_that_the_trainer_does_not_hold_is_not_planned(objective: Objective) -> None:
    assert plan_memory(SMALL, Layout(objective=objective)) == plan_memory(SMALL, Layout(objective=PLAIN))
    assert plan_memory(SMALL, Layout())[0].teacher > 0


def test_ranks_that_share_a_query_group_hold_the_product_of_all() -> None:
    """4 heads and 2 groups of 2 channels: 8 columns of queries, 4 of keys."""
    own, shared = (PlannedRun.of(SMALL, Layout(tensor_model_parallel_size=tensor)) for tensor in (2, 4))
    assert attention_columns(own) == 3 * (4 + 2)  # product, rotated queries and keys, output
    assert attention_columns(shared) == (8 + 2 * 4) + (2 + 2) + 2  # all ranks' product, rotated, output


@pytest.mark.parametrize(
    ("saves", "part"),
    [
        ({"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}, "activations"),
        ({"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 8}, "activations"),
        ({"recompute_granularity": "selective", "recompute_modules": ("layernorm",)}, "activations"),
        ({"recompute_granularity": "selective", "recompute_modules": ("mlp",)}, "activations"),
        ({"sequence_parallel": True}, "activations"),
        ({"context_parallel_size": 2}, "activations"),
        ({"micro_batch_size": 1}, "activations"),
        ({"loss_chunk_tokens": 512}, "logits"),
        ({"teacher_offload": "cpu"}, "teacher"),
        ({"use_distributed_optimizer": True, "num_gpus": 4}, "optimizer"),
        ({"objective": Objective(alpha=1.0)}, "teacher"),
    ],
)
def test_what_saves_memory_saves_it_where_it_should(saves: dict, part: str) -> None:
    base = Layout(tensor_model_parallel_size=2, micro_batch_size=4)
    (before,), (after,) = plan_memory(LLAMA, base), plan_memory(LLAMA, dataclasses.replace(base, **saves))
    assert getattr(after, part) < getattr(before, part)
    assert after.peak < before.peak


def test_advice_adds_changes_until_the_run_fits() -> None:
    layout = Layout(num_gpus=8, micro_batch_size=2, bf16=True)
    steps = suggest(LLAMA, layout, 70 * GIB)
    assert steps[0][0] == "--use-distributed-optimizer"
    peaks = [peak_bytes(LLAMA, layout), *(peak for _, peak in steps)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] <= 70 * GIB < peaks[-2]


def test_report_says_what_fits_and_what_does_not() -> None:
    sizes = {"num_gpus": 8, "tensor_model_parallel_size": 2, "sequence_parallel": True}
    layout = Layout(**sizes, use_distributed_optimizer=True, bf16=True)
    assert "\nfits: stage 0: 46.2 GiB and 6 in reserve, of 80 GiB" in report(LLAMA, layout, gpu_memory=80, reserve=6)
    tight = report(LLAMA, layout, gpu_memory=40, reserve=6)
    assert "warning: does not fit: stage 0: 46.2 GiB and 6 in reserve, 12.2 GiB more than --gpu-memory 40" in tight
    assert tight.endswith("then it fits")
    assert "take more GPUs" in report(LLAMA, Layout(num_gpus=1), gpu_memory=20, reserve=6)


def test_impossible_layouts_are_refused() -> None:
    """The checks are those of ``parallel_sizes``; ``test_layout.py`` holds them against the engine's."""
    with pytest.raises(ConfigError, match="6 ranks cannot hold complete copies .*--num-gpus"):
        plan_memory(LLAMA, Layout(num_gpus=6, tensor_model_parallel_size=4))

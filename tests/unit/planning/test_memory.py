"""The memory plan against sums done by hand, and its advice."""

import dataclasses

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.planning.advice import peak_bytes, suggest
from megatron_mixcpt.planning.layout import Layout
from megatron_mixcpt.planning.memory import plan_memory
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape
from megatron_mixcpt.planning.tool import report

# Hidden size 8, MLP 16, 4 heads in 2 groups of 2 channels, 10 tokens: a layer has 8 x (8 + 8 + 8) + 3 x 8 x 16 + 16 =
# 592 parameters.
SMALL = ModelShape(4, 8, 16, 4, 2, 10, 2)
LLAMA = PRESETS["llama-3-8b"]
GIB = 2**30


def test_what_is_always_there_follows_from_the_parameters() -> None:
    (stage,) = plan_memory(SMALL, Layout(num_gpus=2, use_distributed_optimizer=True))
    parameters = 4 * 592 + 2 * 80 + 8
    assert SMALL.num_parameters == parameters
    assert (stage.student, stage.teacher, stage.gradients) == (2 * parameters, 2 * parameters, 4 * parameters)
    assert stage.optimizer == 12 * parameters // 2  # a float32 copy and two moments, over two ranks


def test_stages_hold_their_own_part() -> None:
    first, last = plan_memory(SMALL, Layout(pipeline_model_parallel_size=2, distillation="none"))
    assert first.student == 2 * (2 * 592 + 80) and last.student == 2 * (2 * 592 + 80 + 8)
    assert first.teacher == last.teacher == first.logits == 0
    tied = dataclasses.replace(SMALL, tied=True)
    assert plan_memory(tied, Layout())[0].student == 2 * tied.num_parameters
    assert plan_memory(tied, Layout(pipeline_model_parallel_size=2))[1].student == last.student  # a copy at each end


def test_earlier_stages_hold_more_microbatches() -> None:
    layout = Layout(pipeline_model_parallel_size=4)
    assert [layout.chunks_in_flight(stage) for stage in range(4)] == [4, 3, 2, 1]
    assert Layout(pipeline_model_parallel_size=4, global_batch_size=2).chunks_in_flight(0) == 2
    # Interleaved: (stages - 1) x 2 + (chunks - 1) x stages before the first backward pass, and the one at work.
    interleaved = Layout(pipeline_model_parallel_size=4, num_virtual_stages_per_pipeline_rank=2)
    assert [interleaved.chunks_in_flight(stage) for stage in range(4)] == [11, 9, 7, 5]


@pytest.mark.parametrize(
    ("saves", "part"),
    [
        ({"recompute_granularity": "full"}, "activations"),
        ({"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 8}, "activations"),
        ({"recompute_granularity": "selective", "recompute_modules": ("layernorm",)}, "activations"),
        ({"recompute_granularity": "selective", "recompute_modules": ("mlp",)}, "activations"),
        ({"sequence_parallel": True}, "activations"),
        ({"context_parallel_size": 2}, "activations"),
        ({"micro_batch_size": 1}, "activations"),
        ({"loss_chunk_tokens": 512}, "logits"),
        ({"teacher_offload": "cpu"}, "teacher"),
        ({"use_distributed_optimizer": True, "num_gpus": 4}, "optimizer"),
    ],
)
def test_what_saves_memory_saves_it_where_it_should(saves: dict, part: str) -> None:
    base = Layout(tensor_model_parallel_size=2, micro_batch_size=4)
    (before,), (after,) = plan_memory(LLAMA, base), plan_memory(LLAMA, dataclasses.replace(base, **saves))
    assert getattr(after, part) < getattr(before, part)
    assert after.peak < before.peak


def test_advice_adds_changes_until_the_run_fits() -> None:
    layout = Layout(num_gpus=8, micro_batch_size=2)
    steps = suggest(LLAMA, layout, 70 * GIB)
    assert steps[0][0] == "--use-distributed-optimizer"
    peaks = [peak_bytes(LLAMA, layout), *(peak for _, peak in steps)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] <= 70 * GIB < peaks[-2]


def test_report_says_what_fits_and_what_does_not() -> None:
    layout = Layout(num_gpus=8, tensor_model_parallel_size=2, sequence_parallel=True, use_distributed_optimizer=True)
    assert "\nfits: stage 0: 46.2 GiB and 6 in reserve, of 80 GiB" in report(LLAMA, layout, gpu_memory=80, reserve=6)
    tight = report(LLAMA, layout, gpu_memory=40, reserve=6)
    assert "warning: does not fit: stage 0: 46.2 GiB and 6 in reserve, 12.2 GiB more than --gpu-memory 40" in tight
    assert tight.endswith("then it fits")
    assert "take more GPUs" in report(LLAMA, Layout(num_gpus=1), gpu_memory=20, reserve=6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tensor_model_parallel_size": 16},
            "--tensor-model-parallel-size 16 does not divide the model's 8 query",
        ),
        ({"pipeline_model_parallel_size": 3}, "--pipeline-model-parallel-size 3 x 1 chunks a rank does not divide"),
        ({"num_gpus": 6, "tensor_model_parallel_size": 4}, "--num-gpus 6 is no multiple of the 4 GPUs"),
        ({"sequence_parallel": True}, "--sequence-parallel with --tensor-model-parallel-size 1"),
        ({"micro_batch_size": 0}, "--micro-batch-size 0: give a positive number"),
    ],
)
def test_impossible_layouts_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_memory(LLAMA, Layout(**settings))

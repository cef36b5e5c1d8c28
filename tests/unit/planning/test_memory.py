"""The memory plan against sums done by hand, and its advice."""

import dataclasses

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.objective import Objective
from megatron_mixcpt.planning.activations import attention_columns, expert_bytes
from megatron_mixcpt.planning.advice import peak_bytes, suggest
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.memory import plan_memory
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape
from megatron_mixcpt.planning.tool import report
from megatron_mixcpt.planning.weights import stage_parameters

# Hidden size 8, MLP 16, 4 heads in 2 groups of 2 channels, 10 tokens: a layer has 8 x (8 + 8 + 8) + 3 x 8 x 16 + 16 =
# 592 parameters.
SMALL = ModelShape(4, 8, 16, 4, 2, 10, 2, 2048)
# The same attention, and 4 experts of 6 columns of which a token goes to 2: a layer has 8 x (8 + 8 + 8) + 16 = 208
# parameters beside its router's 8 x 4 and its experts' 4 x 3 x 8 x 6 = 576.
EXPERTS = dataclasses.replace(SMALL, num_experts=4, moe_ffn_hidden_size=6, moe_router_topk=2)
LLAMA = PRESETS["llama-3-8b"]
GIB = 2**30
PLAIN = Objective(distillation="none")


def test_what_is_always_there_follows_from_the_parameters() -> None:
    (stage,) = plan_memory(SMALL, Layout(num_gpus=2, bf16=True, use_distributed_optimizer=True))
    parameters = 4 * 592 + 2 * 80 + 8
    assert SMALL.num_parameters == parameters
    assert (stage.student, stage.teacher, stage.gradients) == (2 * parameters, 2 * parameters, 4 * parameters)
    assert stage.optimizer == 12 * parameters // 2  # a float32 copy and two moments, over two ranks


def test_experts_are_divided_and_their_optimizer_sharded_apart() -> None:
    """Two of four ranks hold copies of each expert, and all four of the rest."""
    layout = Layout(num_gpus=4, bf16=True, use_distributed_optimizer=True, expert_model_parallel_size=2)
    (stage,) = plan_memory(EXPERTS, layout)
    experts, rest = 4 * 576 // 2, 4 * (208 + 32) + 2 * 80 + 8
    assert (stage.student, stage.gradients) == (2 * (experts + rest), 4 * (experts + rest))
    assert stage.optimizer == 12 * (experts // 2 + rest // 4)
    # TP 2 splits attention but no expert, of which two ranks then hold copies; an expert's rows are a rank's own.
    sizes = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 1}
    run = PlannedRun.of(EXPERTS, Layout(**sizes, expert_model_parallel_size=2))
    attention = 8 * (8 + 8 + 8)  # of 208 parameters, 16 are the norms'
    assert stage_parameters(run, 0) == 4 * (attention // 2 + 16 + 32 + 576 // 2) + 2 * 5 * 8 + 8
    assert run.routed_rows == 2048 // 2 * 2
    shared = dataclasses.replace(run, sizes=dataclasses.replace(run.sizes, expert=1, expert_tensor=2))
    assert shared.routed_rows == 2048 * 2


def test_a_layer_with_experts_saves_their_rows() -> None:
    """In float32, for 2,048 tokens: 4,096 rows of 8 + 3 x 6 numbers and their places, and scores of 4 experts."""
    run = PlannedRun.of(EXPERTS, Layout())
    assert expert_bytes(run) == 4096 * (4 * (8 + 18) + 20) + 2048 * 4 * 20
    selective = {"recompute_granularity": "selective"}
    activation = PlannedRun.of(EXPERTS, Layout(**selective, recompute_modules=("moe_act",), moe_grouped_gemm=True))
    assert expert_bytes(run) - expert_bytes(activation) == 4096 * 4 * 6
    assert expert_bytes(PlannedRun.of(EXPERTS, Layout(**selective, recompute_modules=("moe",)))) == 0


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


def test_gathered_keys_and_values_are_those_of_the_whole_sequence() -> None:
    """4 heads and 2 groups of 2 channels: 8 columns of queries, 4 of keys."""
    local = {"context_parallel_size": 4, "transformer_impl": "local"}

    def columns(**more) -> int:
        return attention_columns(PlannedRun.of(SMALL, Layout(**local | more)))

    assert columns(bf16=True) == 8 + 2 * 4 * 4 + 2 * 8  # rotated queries, keys and values, two chunks and the whole
    assert columns() == 8 + 2 * 8 * 4 + 2 * 8  # repeated
    assert columns(document_masking=True) == 8 + 2 * 8 * 4 + 8  # one call, one output
    assert columns(recompute_activations=True) == 3 * (8 + 4)  # as on one rank
    assert columns(transformer_impl="transformer_engine") == 3 * (8 + 4)


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


def test_torchs_optimizer_makes_a_temporary_as_large_as_a_moment() -> None:
    """Where neither Transformer Engine nor Apex brings a fused one: 4 bytes for each parameter of the shard."""
    (parameters,) = [stage.student // 2 for stage in plan_memory(LLAMA, Layout(bf16=True))]
    plain = Layout(transformer_impl="local", gradient_accumulation_fusion=False, bf16=True, seq_length=16)
    (stage,) = plan_memory(LLAMA, plain)
    assert stage.temporary + stage.activations + stage.logits == 4 * parameters
    (sharded,) = plan_memory(LLAMA, dataclasses.replace(plain, num_gpus=4, use_distributed_optimizer=True))
    assert sharded.temporary + sharded.activations + sharded.logits == parameters
    (apex,) = plan_memory(LLAMA, dataclasses.replace(plain, gradient_accumulation_fusion=True))
    assert apex.peak < stage.peak - 3 * parameters
    # A moment like the others: what the backward pass needs at its peak is free by then.
    (long,) = plan_memory(LLAMA, dataclasses.replace(plain, seq_length=8192))
    assert long.temporary < parameters


def test_a_teacher_in_8_bits_has_a_copy_beside_it() -> None:
    """A byte for each number of its layers' matrices; offloaded, of one matrix at a time, the MLP's first."""
    base, matrices = Layout(bf16=True, tensor_model_parallel_size=2), sum(layer.divided for layer in LLAMA.layers) // 2
    (plain,), (fp8,) = (plan_memory(LLAMA, dataclasses.replace(base, teacher_fp8=flag)) for flag in (False, True))
    assert fp8.teacher - plain.teacher == matrices
    offloaded = dataclasses.replace(base, teacher_offload="cpu")
    (plain,), (fp8,) = (plan_memory(LLAMA, dataclasses.replace(offloaded, teacher_fp8=flag)) for flag in (False, True))
    assert fp8.teacher - plain.teacher == 2 * 14336 * 4096 // 2
    with pytest.raises(ConfigError, match="--teacher-fp8: no teacher"):
        Layout(teacher_fp8=True, objective=PLAIN)
    with pytest.raises(ConfigError, match="--teacher-fp8 needs"):
        Layout(teacher_fp8=True, transformer_impl="local")


def test_where_flash_cannot_serve_groups_keys_and_values_are_repeated() -> None:
    """4 heads and 2 groups of 2 channels. In float32, and with the dense mask of documents, of which there is one."""
    local = Layout(transformer_impl="local", bf16=True)
    masked = dataclasses.replace(local, document_masking=True)
    columns = [attention_columns(PlannedRun.of(SMALL, layout)) for layout in (local, masked)]
    assert columns == [3 * (8 + 4), 4 * 8]
    assert attention_columns(PlannedRun.of(SMALL, dataclasses.replace(local, bf16=False))) == 4 * 8
    alone = dataclasses.replace(masked, tensor_model_parallel_size=4)  # one head on each rank has nothing to repeat
    assert attention_columns(PlannedRun.of(SMALL, alone)) == (8 + 2 * 4) + (2 + 2) + 2
    (causal,), (dense,) = (plan_memory(SMALL, layout) for layout in (local, masked))
    more_columns = 4 * 2048 * 2 * (columns[1] - columns[0])
    assert dense.activations - causal.activations == more_columns + 2048**2 * 2


def test_an_offloaded_teacher_costs_host_memory_and_below_some_tokens_time() -> None:
    layout = Layout(bf16=True, teacher_offload="cpu", tensor_model_parallel_size=2, sequence_parallel=True)
    short = report(LLAMA, layout, gpu_memory=80, reserve=6)
    assert "the teacher's layers take 6.5 GiB of page-locked host memory for each rank" in short
    assert "below about 10,900 tokens in a microbatch (here 2,048)" in short
    longer = dataclasses.replace(layout, micro_batch_size=8)
    assert "10,900" not in report(LLAMA, longer, gpu_memory=80, reserve=6)
    on_device = dataclasses.replace(layout, teacher_offload="none")
    assert "page-locked" not in report(LLAMA, on_device, gpu_memory=80, reserve=6)


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
    with pytest.raises(ConfigError, match="6 ranks cannot be divided into complete copies .*--num-gpus"):
        plan_memory(LLAMA, Layout(num_gpus=6, tensor_model_parallel_size=4))

"""How ranks are divided, and what is refused before the engine would."""

from typing import Any

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.parallel_sizes import ParallelSizes, check_batches, check_layout, global_batch_size

MODEL = {
    "num_layers": 8,
    "num_attention_heads": 12,
    "num_query_groups": 2,
    "ffn_hidden_size": 24,
    "max_position_embeddings": 64,
    "transformer_impl": "transformer_engine",
    "seq_length": 64,
    "micro_batch_size": 2,
}
MOE = {"num_experts": 6, "moe_ffn_hidden_size": 10}
DELTA_NETS = {"linear_attention_freq": [1, 0], "linear_num_key_heads": 6}


def test_sizes_follow_from_the_flags() -> None:
    settings = MODEL | {"tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 2}
    sizes = ParallelSizes.of(settings | {"num_layers_per_virtual_pipeline_stage": 2}, num_ranks=24)
    assert sizes == ParallelSizes(tensor=4, pipeline=2, context=1, data=3, chunks=2, microbatch_group=2)
    assert sizes.ranks_per_copy == 8
    assert ParallelSizes.of(settings) == ParallelSizes(tensor=4, pipeline=2)
    assert global_batch_size(sizes, settings) == 6
    assert global_batch_size(sizes, settings | {"global_batch_size": 12}) == 12


def test_experts_are_divided_over_the_ranks_of_a_stage() -> None:
    settings = MODEL | MOE | {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    sizes = ParallelSizes.of(settings | {"expert_model_parallel_size": 3}, num_ranks=24)
    assert (sizes.data, sizes.expert, sizes.expert_tensor, sizes.expert_data) == (6, 3, 2, 2)
    alone = ParallelSizes.of(settings | {"expert_model_parallel_size": 3, "expert_tensor_parallel_size": 1}, 24)
    assert (alone.expert_tensor, alone.expert_data) == (1, 4)


@pytest.mark.parametrize(
    ("changed", "num_ranks", "message"),
    [
        ({"tensor_model_parallel_size": 0}, 1, "--tensor-model-parallel-size 0 must be greater than 0"),
        (
            {"pipeline_model_parallel_size": 2},
            3,
            "^3 ranks cannot be divided into complete copies of the model of 2 .TP 1 x PP 2 x CP 1.: start 2 or 4",
        ),
        ({"pipeline_model_parallel_size": 2}, 1, "^1 rank cannot be divided .*: start 2 "),
        ({"tensor_model_parallel_size": 8}, 8, "8 does not divide the model's 12 attention heads: choose 6 or 12"),
        ({"tensor_model_parallel_size": 2, "ffn_hidden_size": 9}, 2, "does not divide the model's 9 MLP columns"),
        (
            {"tensor_model_parallel_size": 3},
            3,
            "neither a divisor nor a multiple of the model's 2 query groups: choose 2 or 4",
        ),
        (
            {"pipeline_model_parallel_size": 3},
            3,
            "--pipeline-model-parallel-size 3 does not divide the model's 8 layers: choose 2 or 4",
        ),
        ({"num_virtual_stages_per_pipeline_rank": 2}, 1, "2 chunks of layers on each rank need"),
        ({"seq_length": 128}, 1, "--seq-length 128 is longer than the model's 64 positions"),
        (
            {"context_parallel_size": 3},
            3,
            "--seq-length 64 is not a multiple of 6, .* twice --context-parallel-size 3: choose 60 or 66",
        ),
        ({"expert_model_parallel_size": 2}, 2, "--expert-model-parallel-size 2: the model has no experts"),
        ({"expert_tensor_parallel_size": 2}, 2, "--expert-tensor-parallel-size 2: the model has no experts"),
        ({**MOE, "expert_model_parallel_size": 4}, 4, "4 does not divide the model's 6 experts: choose 3 or 6"),
        ({**MOE, "expert_tensor_parallel_size": 4}, 4, "4 .* does not divide the 10 columns of the model's experts"),
        ({**MOE, "expert_model_parallel_size": 3}, 2, "^2 ranks cannot .* of 3 .*EP 3 x ETP 1 x PP 1.: start 3 "),
        ({**MOE, "tensor_model_parallel_size": 2}, 2, "a model with experts needs --sequence-parallel"),
        ({"recompute_granularity": "full"}, 1, "needs --recompute-method: give --recompute-method uniform"),
        ({"recompute_activations": True, "recompute_num_layers": 1}, 1, "--recompute-num-layers 1 goes with"),
        (
            {"recompute_granularity": "selective", "recompute_modules": ["layernorm"], "transformer_impl": "local"},
            1,
            "--recompute-modules layernorm needs Transformer Engine",
        ),
        (
            {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
            1,
            "--recompute-modules moe: the model has no experts; choose from core_attn, layernorm, mlp$",
        ),
        (
            {**MOE, "recompute_granularity": "selective", "recompute_modules": ["moe_act"]},
            1,
            "--recompute-modules moe_act needs --moe-grouped-gemm",
        ),
        (
            {**DELTA_NETS, "tensor_model_parallel_size": 4},
            4,
            "--tensor-model-parallel-size 4 does not divide the model's 6 heads of keys in gated delta nets",
        ),
        (
            {**DELTA_NETS, "tensor_model_parallel_size": 2, "context_parallel_size": 2},
            4,
            "--context-parallel-size 2 does not divide the 3 heads of keys .* choose 1 or 3",
        ),
        (
            {**DELTA_NETS, "tensor_model_parallel_size": 2},
            2,
            "--tensor-model-parallel-size 2 of a model with gated delta nets needs --sequence-parallel: add it",
        ),
        ({"global_batch_size": 6}, 2, "--global-batch-size 6 is not a multiple of --micro-batch-size 2 x 2 copies"),
        (
            {
                "pipeline_model_parallel_size": 2,
                "num_virtual_stages_per_pipeline_rank": 2,
                "global_batch_size": 6,
            },
            2,
            "makes 3 microbatches in each step.*give a multiple of 4",
        ),
    ],
)
def test_what_does_not_divide_is_refused(changed: dict[str, Any], num_ranks: int, message: str) -> None:
    settings = MODEL | changed
    with pytest.raises(ConfigError, match=message):
        sizes = ParallelSizes.of(settings, num_ranks)
        check_layout(sizes, settings)
        check_batches(sizes, settings)


@pytest.mark.parametrize(
    "changed",
    [
        {"tensor_model_parallel_size": 4},  # two ranks share each query group
        {**DELTA_NETS, "context_parallel_size": 3, "tensor_model_parallel_size": 2, "sequence_parallel": True}
        | {"seq_length": 60},
        {"sequence_parallel": True},  # the engine turns it off without tensor parallelism
        {"pipeline_model_parallel_size": 3, "decoder_first_pipeline_num_layers": 2},
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
        {"recompute_granularity": "selective", "recompute_modules": ["layernorm"]},
        {"recompute_granularity": "selective", "recompute_modules": ["mlp"], "transformer_impl": "local"},
    ],
)
def test_the_nearest_valid_layout_is_accepted(changed: dict[str, Any]) -> None:
    settings = MODEL | changed
    sizes = ParallelSizes.of(settings)
    check_layout(sizes, settings)
    check_batches(sizes, settings)

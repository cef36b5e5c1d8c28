"""Flags that only some layouts allow; what they need is the engine's rule, read in its source."""

from typing import Any

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.parallel_sizes import ParallelSizes
from megatron_mixcpt.training.layout_flags import check_evaluation, check_layout_flags

SETTINGS = {
    "num_layers": 4,
    "num_attention_heads": 12,
    "num_query_groups": 6,
    "transformer_impl": "transformer_engine",
    "micro_batch_size": 2,
    "global_batch_size": 24,
}
SHARDED = {"use_distributed_optimizer": True}
INTERLEAVED = {"pipeline": 2, "chunks": 2, "microbatch_group": 2}


@pytest.mark.parametrize(
    ("sizes", "given", "message"),
    [
        ({}, {"overlap_param_gather": True}, "--overlap-param-gather needs --use-distributed-optimizer"),
        ({}, SHARDED | {"overlap_param_gather": True}, "--overlap-param-gather needs --overlap-grad-reduce"),
        ({}, {"use_precision_aware_optimizer": True}, "needs --use-distributed-optimizer"),
        ({"data": 2}, {"num_distributed_optimizer_instances": 2}, "2 needs --use-distributed-optimizer"),
        ({"data": 3}, SHARDED | {"num_distributed_optimizer_instances": 2}, "does not divide the DP 3 x CP 1 copies"),
        (
            {"data": 2, "expert": 2},
            SHARDED | {"num_distributed_optimizer_instances": 2, "num_experts": 4},
            "does not divide the 1 copies of each expert",
        ),
        (INTERLEAVED, {"overlap_p2p_comm": False}, "needs --pipeline-model-parallel-size 3 or more, not 2"),
        ({"pipeline": 2}, {"overlap_p2p_comm_warmup_flush": True}, "needs an interleaved pipeline"),
        (
            {"pipeline": 2, "data": 2, "expert": 2},
            {"use_tp_pp_dp_mapping": True, "num_experts": 4},
            "needs as many copies of each expert as of the model, not 1 and 2",
        ),
        ({"context": 2}, {"cp_comm_type": ["a2a"], "transformer_impl": "local"}, "is not used here"),
        ({"context": 2}, {"cp_comm_type": ["ring"]}, "ring is not one of"),
        ({"context": 2}, {"cp_comm_type": ["p2p", "a2a"]}, "one for each of the model's 4 layers"),
        (
            {"context": 4, "tensor": 2},
            {"cp_comm_type": ["a2a"]},
            "divides the 6 attention heads of a rank over 4 ranks",
        ),
        ({"context": 2}, {"cp_comm_type": ["a2a+p2p"]}, "needs --hierarchical-context-parallel-sizes"),
        ({"context": 4}, {"hierarchical_context_parallel_sizes": [2, 1]}, "must have the product .* 4: change it"),
        ({}, {"distribute_saved_activations": True}, "needs --tensor-model-parallel-size 2 or more"),
        ({"tensor": 2}, {"distribute_saved_activations": True}, "needs --recompute-granularity full"),
    ],
)
def test_what_a_layout_does_not_allow(sizes: dict[str, int], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_layout_flags(ParallelSizes(**sizes), SETTINGS | given)


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ({}, SHARDED | {"overlap_param_gather": True, "overlap_grad_reduce": True}),
        ({"data": 2}, SHARDED | {"num_distributed_optimizer_instances": 2}),
        (INTERLEAVED, {"overlap_p2p_comm_warmup_flush": True}),
        ({"pipeline": 2, "tensor": 2, "expert": 2}, {"use_tp_pp_dp_mapping": True, "num_experts": 4}),
        ({"context": 2}, {"cp_comm_type": ["a2a"]}),
        ({"context": 4}, {"cp_comm_type": ["a2a+p2p"], "hierarchical_context_parallel_sizes": [2, 2]}),
        ({"tensor": 2}, {"distribute_saved_activations": True, "recompute_granularity": "full"}),
    ],
)
def test_the_nearest_that_it_allows(
    sizes: dict[str, int], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    check_layout_flags(ParallelSizes(**sizes), SETTINGS | given)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the layout needs one queue to the device; Blackwell needs none."""
    module = "megatron_mixcpt.training.layout_flags.get_device_arch_version"
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    monkeypatch.setattr(module, lambda: 9)
    check_layout_flags(ParallelSizes(pipeline=2), SETTINGS)
    with pytest.raises(ConfigError, match="CUDA_DEVICE_MAX_CONNECTIONS=8 in the environment"):
        check_layout_flags(ParallelSizes(tensor=2), SETTINGS)
    monkeypatch.setattr(module, lambda: 10)
    check_layout_flags(ParallelSizes(tensor=2), SETTINGS)


def test_batches_of_an_evaluation() -> None:
    check_evaluation(ParallelSizes(data=3), SETTINGS)
    check_evaluation(ParallelSizes(**INTERLEAVED), SETTINGS | {"eval_micro_batch_size": 3, "eval_global_batch_size": 6})
    with pytest.raises(ConfigError, match="--eval-global-batch-size 5 .* must be a multiple of 4: .* 2 .* x 2 copies"):
        check_evaluation(ParallelSizes(data=2), SETTINGS | {"eval_global_batch_size": 5})
    with pytest.raises(ConfigError, match="--eval-global-batch-size 24 .* must be a multiple of 16: .* x 2 microb"):
        check_evaluation(ParallelSizes(**INTERLEAVED), SETTINGS | {"eval_micro_batch_size": 8})

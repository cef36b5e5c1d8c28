"""The engine's command line: what this machine has installed decides, and what is refused, each flag by name."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.testing import run_distributed

EXTENSION = "fused_weight_gradient_mlp_cuda"  # of Apex


def test_the_engines_arguments() -> None:
    """One rank for all, for it takes seconds to import the engine."""
    run_distributed(check_arguments, 1, cpu_emulation=True)


def check_arguments() -> None:
    check_gradients_are_accumulated_by_apex_alone()
    check_an_output_layer_is_made_of_the_defaults()
    check_a_default_of_ours_yields_to_a_flag_that_decides_the_same()
    check_the_vocabulary_is_padded_as_the_flags_say()
    check_flags_of_another_architecture_are_refused()
    check_assumed_ranks_are_those_that_were_started()


def defaults_with(*, transformer_engine: bool, apex: bool) -> dict:
    """``engine_defaults`` on a machine made up with stand-ins."""
    from megatron_mixcpt.training.engine import arguments

    arguments.HAVE_TE = transformer_engine
    sys.modules.pop(EXTENSION, None)
    if apex:
        sys.modules[EXTENSION] = ModuleType(EXTENSION)
    return arguments.engine_defaults(SimpleNamespace(engine_arguments={}), eos_id=0)


def check_gradients_are_accumulated_by_apex_alone() -> None:
    """Transformer Engine without Apex is what pip gives; Apex is used without Transformer Engine too."""
    for transformer_engine in (False, True):
        for apex in (False, True):
            defaults = defaults_with(transformer_engine=transformer_engine, apex=apex)
            assert defaults["gradient_accumulation_fusion"] is apex, (transformer_engine, apex)
            assert defaults["transformer_impl"] == ("transformer_engine" if transformer_engine else "local")
            assert ("apply_rope_fusion" in defaults) is not transformer_engine
            assert defaults["moe_router_bias_update_rate"] == 0.0  # or routing would drift from the teacher's
    given = explicit(["--no-gradient-accumulation-fusion"])
    assert (defaults_with(transformer_engine=True, apex=True) | given)["gradient_accumulation_fusion"] is False


def check_an_output_layer_is_made_of_the_defaults() -> None:
    """The engine's layer refuses to be made where it is to use an extension that is not there."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from megatron.core.transformer.transformer_config import TransformerConfig

    parallel_state.initialize_model_parallel()
    fusion = defaults_with(transformer_engine=True, apex=False)["gradient_accumulation_fusion"]
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "perform_initialization": False}
    config = TransformerConfig(**shape, gradient_accumulation_fusion=fusion)
    ColumnParallelLinear(8, 16, config=config, init_method=torch.nn.init.zeros_, bias=False)


def explicit(argv: list[str]) -> dict:
    from megatron_mixcpt.config import MixCPTConfig
    from megatron_mixcpt.training.engine.arguments import explicit_arguments

    return explicit_arguments(argv, MixCPTConfig)


def check_a_default_of_ours_yields_to_a_flag_that_decides_the_same() -> None:
    from megatron_mixcpt.training.engine.arguments import merge_settings

    ours = {"lr_warmup_fraction": 0.1, "lr": 1e-5}
    for given in ({"lr_warmup_iters": 3}, {"lr_warmup_samples": 9}, {"lr_warmup_fraction": 0.2}):
        assert merge_settings(ours, given) == {"lr": 1e-5, **given}
    for both in ({"lr_warmup_iters": 3, "lr_warmup_fraction": 0.2}, {"fp16": True, "bf16": True}):
        with pytest.raises(ConfigError, match=" and --.* decide the same: give one of them"):
            merge_settings(ours, both)


def check_assumed_ranks_are_those_that_were_started() -> None:
    from megatron_mixcpt.training.engine.arguments import num_ranks_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "1")
        patch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        assert (num_ranks_of({}), num_ranks_of({"assume_ranks": 64})) == (1, 64)
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        assert num_ranks_of({"assume_ranks": 1}) == 1
        for started in ("1", "4"):
            patch.setenv("WORLD_SIZE", started)
            with pytest.raises(ConfigError, match=f"--assume-ranks 64, and torchrun has started {started}: run the"):
                num_ranks_of({"assume_ranks": 64})


def check_the_vocabulary_is_padded_as_the_flags_say() -> None:
    from megatron_mixcpt.training.engine.arguments import _derived

    for given, expected in (
        ({}, 385),
        ({"tensor_model_parallel_size": 2}, 386),
        ({"make_vocab_size_divisible_by": 128}, 512),
        ({"make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": 3}, 768),
        ({"padded_vocab_size": 400, "tensor_model_parallel_size": 2}, 400),
    ):
        assert _derived({"vocab_size": 385, **given})["padded_vocab_size"] == expected, given
    for given, message in (
        ({"padded_vocab_size": 384}, "--padded-vocab-size 384: give a multiple"),
        ({"padded_vocab_size": 387, "tensor_model_parallel_size": 2}, "--padded-vocab-size 387: give a multiple"),
        ({"make_vocab_size_divisible_by": 0}, "--make-vocab-size-divisible-by 0 must be greater than 0"),
    ):
        try:
            _derived({"vocab_size": 385, **given})
        except ConfigError as error:
            assert str(error).startswith(message), error
        else:
            raise AssertionError(f"{given} was accepted")


def check_flags_of_another_architecture_are_refused() -> None:
    from megatron_mixcpt.training.engine.arguments import refuse_foreign_architecture

    dense = SimpleNamespace(folder="llama", engine_arguments={"num_experts": None, "num_layers": 2})
    refuse_foreign_architecture({"num_layers": 2, "lr": 1.0, "moe_aux_loss_coeff": 0.0}, dense)
    for given, message in (
        ({"moe_aux_loss_coeff": 0.1}, "--moe-aux-loss-coeff is not used here (llama has no experts); remove it"),
        ({"moe_router_topk": 4}, "--moe-router-topk is not used here (llama has nothing of the kind); remove it"),
    ):
        try:
            refuse_foreign_architecture(given, dense)
        except ConfigError as error:
            assert str(error) == message
        else:
            raise AssertionError(f"{given} was accepted")

"""The engine's command line: what this machine has installed decides, and what is refused, each flag by name."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

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
    check_every_refused_flag_is_refused_by_name()
    check_the_engines_defaults_are_not_refused()


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


def engine_flags() -> Iterator[tuple[str, str, list[str]]]:
    """Each argument of the engine that is refused: its name, its flag, and a value that is not the default."""
    from megatron.training.arguments import add_megatron_arguments

    from megatron_mixcpt.flags import Parser
    from megatron_mixcpt.training.engine.refused_flags import REFUSED

    actions = {action.dest: action for action in add_megatron_arguments(Parser())._actions}
    for name in REFUSED:
        action = actions[name]
        others = [str(choice) for choice in action.choices or () if choice != action.default]
        value = [] if action.nargs == 0 else others[:1] or ["attn" if "cuda_graph" in name else "2"]
        yield name, action.option_strings[0], value


def check_every_refused_flag_is_refused_by_name() -> None:
    for name, flag, value in engine_flags():
        try:
            explicit([flag, *value])
        except ConfigError as error:
            assert str(error).startswith(f"{flag} is not supported ("), (name, error)
            assert str(error).endswith("); remove it"), error
        else:
            raise AssertionError(f"{flag} {value} was accepted")


def check_the_engines_defaults_are_not_refused() -> None:
    argv = ["--cuda-graph-impl", "none", "--optimizer-offload-fraction", "1.0"]
    assert explicit(argv) == {"cuda_graph_impl": "none", "optimizer_offload_fraction": 1.0}

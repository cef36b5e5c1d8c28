"""Flags of Transformer Engine: on a device that supports 8 bits, on one that does not, and without it."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.training.engine import transformer_engine
from megatron_mixcpt.training.engine.transformer_engine import check_transformer_engine

SIZES = {"hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4, "kv_channels": 16}
SETTINGS = SIZES | {"seq_length": 32, "micro_batch_size": 1, "transformer_impl": "transformer_engine", "bf16": True}
FP8 = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine's answers on a GPU that has 8 bits and not Blackwell's blocks of them."""
    module = ModuleType("transformer_engine.pytorch.fp8")
    module.check_fp8_support = module.check_fp8_block_scaling_support = lambda: (True, "")
    module.check_mxfp8_support = lambda: (False, "Device compute capability 10.0 or higher required.")
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["transformer_engine.pytorch"], "fp8", module, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(transformer_engine, "HAVE_TE", True)


def refusal(*, teacher_fp8: bool = False, implementation: str = "transformer_engine", **explicit: object) -> str:
    """What these arguments are refused with; empty where they are accepted."""
    settings = SETTINGS | explicit | {"transformer_impl": implementation}
    try:
        check_transformer_engine(explicit, settings, teacher_fp8=teacher_fp8)
    except ConfigError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_eight_bits_where_the_device_has_them() -> None:
    assert not refusal(**FP8)
    assert not refusal(**FP8 | {"fp8_recipe": "blockwise"}, first_last_layers_bf16=True)
    assert not refusal(teacher_fp8=True)
    assert "does not support it (Device compute capability 10.0 or higher required); remove it" in refusal(
        **FP8 | {"fp8_recipe": "mxfp8"}
    )


def test_eight_bits_that_are_refused() -> None:
    assert "--fp8-format hybrid with --fp8-recipe delayed" in refusal(fp8="hybrid")  # the engine's default
    assert "needs --bf16" in refusal(**FP8, bf16=False)
    assert "the 24 columns of the MLP on a rank are not a multiple of 16" in refusal(
        **FP8, tensor_model_parallel_size=4
    )
    assert "the 8 tokens of a microbatch on a rank" in refusal(**FP8, context_parallel_size=4)
    assert "--fp8-recipe has no effect without --fp8-format" in refusal(fp8_recipe="tensorwise")


def test_transformer_engine_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_engine, "HAVE_TE", False)
    assert "cannot be imported here (its version is not supported); install it, or remove the flag" in refusal()
    monkeypatch.delitem(sys.modules, "transformer_engine.pytorch")
    monkeypatch.delitem(sys.modules, "transformer_engine.pytorch.fp8")
    assert "cannot be imported here (No module named 'transformer_engine.pytorch'" in refusal()
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    assert "cannot be imported here (it computes on GPUs alone, and this run is on the CPU)" in refusal()
    assert not refusal(implementation="local")


def test_without_transformer_engine() -> None:
    assert "--fp8-format needs Transformer Engine" in refusal(implementation="local", **FP8)
    assert "--teacher-fp8 needs Transformer Engine" in refusal(implementation="local", teacher_fp8=True)
    assert "--attention-backend chooses a kernel" in refusal(implementation="local", attention_backend=backend("flash"))


def test_the_choice_of_an_attention_kernel() -> None:
    assert not refusal(attention_backend=backend("fused"))
    assert "give --transformer-impl local" in refusal(attention_backend=backend("local"))


def backend(name: str) -> SimpleNamespace:
    """As the engine parses the flag: a member of an enumeration."""
    return SimpleNamespace(name=name)


def test_windows_under_context_parallelism() -> None:
    shared = {"context_parallel_size": 2, "window_size": (15, 0)}
    assert "of 16 tokens here, by all_gather or a2a alone: add --cp-comm-type all_gather" in refusal(**shared)
    assert "--cp-comm-type all_gather" in refusal(**shared, cp_comm_type=["p2p"])
    assert not refusal(**shared, cp_comm_type=["all_gather"])
    assert not refusal(**shared | {"window_size": (31, 0)})  # as long as the sequence
    assert not refusal(**shared, implementation="local")

"""PEFT selects with the names exactly the modules that have an adapter, and the names are as short as they can be."""

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from megatron_mixcpt.conversion.adapters.target_modules import target_modules

LAYERS = [f"model.layers.{layer}.{name}" for layer in (1, 11) for name in ("attn.q", "mlp.down", "mlp.shared.down")]
MODULES = [*LAYERS, "model.norm", "lm_head"]


@pytest.mark.parametrize(
    ("adapted", "expected"),
    [
        ([name for name in LAYERS if name.endswith("q")], ["q"]),
        ([name for name in LAYERS if name.endswith("down")], ["down"]),
        ([name for name in LAYERS if "shared" in name], ["shared.down"]),
        ([name for name in LAYERS if "mlp.down" in name], ["mlp.down"]),
        (["model.layers.1.attn.q"], ["model.layers.1.attn.q"]),
    ],
)
def test_exactly_these_are_selected(adapted: list[str], expected: list[str]) -> None:
    names = target_modules(adapted, MODULES)
    assert names == expected
    config = LoraConfig(target_modules=names)
    assert [name for name in MODULES if check_target_module_exists(config, name)] == adapted

"""The modules that adapters are exported for are linear layers of transformers' models, in every family.

Those of multimodal models are loaded by PEFT in ``test_peft_export.py``.
"""

from pathlib import Path

import pytest
import torch
import transformers

from megatron_mixcpt.conversion.adapters.modules import adaptable_rules, hf_weights, take_b_apart
from megatron_mixcpt.conversion.hf_model_folder import read_config
from tests.distributed.kinds import towers
from tests.distributed.tiny_models import KINDS, architecture_of, kinds_of_architectures
from tests.unit.conversion import tiny_hf


@pytest.mark.parametrize(
    "kind", [kinds[0] for kinds in kinds_of_architectures().values() if kinds[0] not in towers.KINDS]
)
def test_they_are_linear_layers_in_memory(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]()
    config.architectures = [architecture_of(kind)]
    config.save_pretrained(tmp_path)
    plan = read_config(tmp_path)
    with torch.device("meta"):
        model = getattr(transformers, architecture_of(kind))(config)
    rules = adaptable_rules(plan)
    assert rules
    for rule in rules.values():
        for name, shape in hf_weights(rule, plan.dims).items():
            module = model.get_submodule(name)
            assert isinstance(module, torch.nn.Linear) and module.weight.shape == shape, name


def test_rows_of_b_are_those_of_the_weight(tmp_path: Path) -> None:
    """Llama's by hand: of each of two groups three queries of 8 rows, a key and a value; gate above up."""
    plan = read_config(tiny_hf.save("llama", tmp_path / "hf"))
    rules = adaptable_rules(plan)
    b = torch.arange(80.0)[:, None]
    rows = b.view(2, 5, 8, 1)
    expected = {"q": rows[:, :3].reshape(48, 1), "k": rows[:, 3].reshape(16, 1), "v": rows[:, 4].reshape(16, 1)}
    found = take_b_apart(rules["decoder.layers.0.self_attention.linear_qkv"], b, plan.dims)
    assert found.keys() == {f"model.layers.0.self_attn.{letter}_proj" for letter in "qkv"}
    for letter, part in expected.items():
        assert torch.equal(found[f"model.layers.0.self_attn.{letter}_proj"], part)
    b = torch.arange(160.0)[:, None]
    found = take_b_apart(rules["decoder.layers.0.mlp.linear_fc1"], b, plan.dims)
    assert torch.equal(found["model.layers.0.mlp.gate_proj"], b[:80])
    assert torch.equal(found["model.layers.0.mlp.up_proj"], b[80:])

"""Mixtures of experts as DeepSeek's keys describe them: layers, groups, and what does not fit together."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.conversion.hf_model_folder import ModelPlan, read_config
from megatron_mixcpt.errors import ConfigError
from tests.distributed.tiny_models import KINDS


def plan_with(folder: Path, **changes: object) -> ModelPlan:
    values = KINDS["glm4-moe"]().to_dict() | {"architectures": ["Glm4MoeForCausalLM"]} | changes
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)


def test_dense_layers_come_first(tmp_path):
    plan = plan_with(tmp_path, first_k_dense_replace=2)
    assert plan.engine_arguments["moe_layer_freq"] == [0, 0, 1, 1]
    rules = plan.rules()
    assert "decoder.layers.1.mlp.linear_fc1.weight" in rules and "decoder.layers.1.mlp.router.weight" not in rules
    assert "decoder.layers.2.mlp.router.expert_bias" in rules and "decoder.layers.2.mlp.linear_fc1.weight" not in rules


def test_shared_experts_are_one_mlp(tmp_path):
    plan = plan_with(tmp_path, n_shared_experts=3, moe_intermediate_size=20)
    assert plan.engine_arguments["moe_shared_expert_intermediate_size"] == 60
    assert plan.hf_shapes()["model.layers.1.mlp.shared_experts.down_proj.weight"] == (48, 60)


@pytest.mark.parametrize(("groups", "chosen", "expected"), [(1, 1, (None, None)), (4, 4, (None, None)), (4, 2, (4, 2))])
def test_groups_where_not_all_serve(tmp_path, groups, chosen, expected):
    arguments = plan_with(tmp_path, n_group=groups, topk_group=chosen).engine_arguments
    assert (arguments["moe_router_num_groups"], arguments["moe_router_group_topk"]) == expected


@pytest.mark.parametrize(("groups", "chosen"), [(4, 5), (3, 2), (4, 1)])
def test_groups_that_offer_too_little(tmp_path, groups, chosen):
    message = rf"n_group {groups} .* topk_group {chosen} .* n_routed_experts 8 .* num_experts_per_tok 3"
    with pytest.raises(ConfigError, match=message):
        plan_with(tmp_path, n_group=groups, topk_group=chosen)


@pytest.mark.parametrize("changes", [{"norm_topk_prob": False}, {"hidden_act": "gelu"}])
def test_what_the_router_cannot_do_is_refused(tmp_path, changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        plan_with(tmp_path, **changes)

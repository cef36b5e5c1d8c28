"""The optimizers' settings move between a single optimizer and one for the experts beside one for the rest."""

import pytest

from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.training.expert_groups import regroup


def group(wd_mult: float, is_expert_parallel: bool, **more: object) -> dict:
    return {"wd_mult": wd_mult, "lr_mult": 1.0, "is_expert_parallel": is_expert_parallel, **more}


def without_params(*groups: dict) -> list[dict]:
    return [{key: value for key, value in item.items() if key != "params"} for item in groups]


# A decayed and an undecayed group as a run at step 7 saves them, and as the two optimizers of another start have them.
SAVED = [group(1.0, False, lr=0.5, step=7), group(0.0, False, lr=0.5, step=7)]
WANTED = {0: [group(0.0, False, lr=9.0), group(1.0, False, lr=9.0)], 1: [group(1.0, True, lr=9.0)]}
OWN = {0: [{"params": [0, 1]}, {"params": [2]}], 1: [{"params": [0]}]}


def test_settings_of_one_optimizer_serve_two() -> None:
    """As the engine loads them: tensors and numbers of parameters by optimizer, the rest in the form of the file."""
    tensors = {key: {"param_groups": own, "state": {0: {"exp_avg": key}}} for key, own in OWN.items()}
    single = {"param_groups": SAVED, "state": {"common_step": 7, 4: {}}}
    regrouped = regroup({**single, **tensors}, WANTED)
    assert regrouped.keys() == {0, 1}
    assert regrouped[0]["param_groups"] == [SAVED[1] | {"params": [0, 1]}, SAVED[0] | {"params": [2]}]
    assert regrouped[1]["param_groups"] == [SAVED[0] | {"params": [0], "is_expert_parallel": True}]
    assert regrouped[1]["state"] == {0: {"exp_avg": 1}, "common_step": 7}


def test_settings_of_two_optimizers_serve_one() -> None:
    """In the form of optimizers that keep float32 weights, whose settings lie one level deeper."""
    saved = {0: {"optimizer": {"param_groups": [SAVED[1]], "state": {"common_step": 7}}, "grad_scaler": {"scale": 2.0}}}
    saved[1] = {"optimizer": {"param_groups": [SAVED[0] | {"is_expert_parallel": True}], "state": {}}}
    own = {"optimizer": {"param_groups": [{"params": [0]}, {"params": [1]}], "state": {1: {"exp_avg": "t"}}}}
    wanted = {None: [group(1.0, False), group(0.0, False)]}
    regrouped = regroup({**own, **saved}, wanted)
    assert regrouped["optimizer"]["param_groups"] == [SAVED[0] | {"params": [0]}, SAVED[1] | {"params": [1]}]
    assert regrouped["optimizer"]["state"] == {1: {"exp_avg": "t"}, "common_step": 7}
    assert regrouped["grad_scaler"] == {"scale": 2.0} and not {0, 1} & regrouped.keys()


def test_the_same_form_is_left_alone() -> None:
    single = {"param_groups": SAVED, "state": {}}
    assert regroup(single, {None: SAVED}) is single
    numbered = {0: {"param_groups": SAVED}, 1: {"param_groups": []}}
    assert regroup(numbered, {0: SAVED, 1: []}) is numbered


def test_settings_that_are_missing_are_named() -> None:
    loaded = {"param_groups": SAVED[:1], "state": {}, **{key: {"param_groups": own} for key, own in OWN.items()}}
    with pytest.raises(CheckpointError, match=r"parameters with wd_mult 0\.0, lr_mult 1\.0: resume .*--pretrained-ch"):
        regroup(loaded, WANTED)

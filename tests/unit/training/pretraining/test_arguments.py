"""Which two models may be student and teacher."""

import pytest

from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.training.pretraining.arguments import _check_same_shape
from tests.unit.conversion.test_hf_model_folder import folder_with


def test_a_teacher_with_other_biases_is_another_model(tmp_path):
    """Those of MLPs are in no argument of the engine."""
    plans = {}
    for name, biases in {"plain": {}, "mlp": {"mlp_bias": True}, "attention": {"attention_bias": True}}.items():
        (tmp_path / name).mkdir()
        plans[name] = read_config(folder_with(tmp_path / name, **biases))
        _check_same_shape(plans[name], plans[name])
    for name, expected in (("mlp", "mlp_bias True"), ("attention", "add_qkv_bias True")):
        with pytest.raises(ConfigError, match=rf"{name} is another model: {expected} \(--hf-model has False\)"):
            _check_same_shape(plans["plain"], plans[name])

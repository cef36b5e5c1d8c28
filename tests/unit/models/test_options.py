"""Options stay with the engine's configuration and its copies, each model's with its own."""

import copy

from megatron_mixcpt.models.options import ModelOptions, Rope, attach_options, options_of
from megatron_mixcpt.testing import run_distributed

ROPE = Rope({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, 8, 8, 64)


def test_options_of_a_configuration() -> None:
    run_distributed(check_options, 1, cpu_emulation=True)


def check_options() -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig

    student = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    assert options_of(student) == ModelOptions()
    attach_options(student, ModelOptions(rope=ROPE))
    teacher = copy.copy(student)
    assert options_of(teacher).rope is ROPE
    attach_options(teacher, ModelOptions())
    assert options_of(teacher).rope is None and options_of(student).rope is ROPE
    assert options_of(copy.deepcopy(student)).rope == ROPE

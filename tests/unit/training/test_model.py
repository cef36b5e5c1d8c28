"""The teacher's configuration is the student's without what only a backward pass needs."""

from dataclasses import replace

import pytest

from megatron_mixcpt.testing import run_distributed


@pytest.mark.parametrize("offload", [False, True])
def test_a_teacher_on_the_host_keeps_no_copy_in_8_bits_on_the_device(offload: bool) -> None:
    run_distributed(check_configuration, 1, offload, cpu_emulation=True)


def check_configuration(offload: bool) -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.training.model import StudentTeacherModelConfig, _frozen

    transformer = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        recompute_granularity="full",
        recompute_method="uniform",
        recompute_num_layers=1,
    )
    config = StudentTeacherModelConfig(
        transformer=transformer, vocab_size=16, holds_teacher=True, teacher_fp8=True, offload_teacher=offload
    )
    teacher = _frozen(config).transformer
    assert (teacher.fp8, teacher.fp8_recipe, teacher.recompute_granularity) == ("e4m3", "tensorwise", None)
    # What the engine's layers read to decide whether Transformer Engine keeps the copy it made of a weight.
    assert teacher.disable_parameter_transpose_cache is teacher.use_cpu_initialization is offload
    assert transformer == replace(transformer, fp8=None, disable_parameter_transpose_cache=False)
    assert transformer.recompute_granularity == "full"

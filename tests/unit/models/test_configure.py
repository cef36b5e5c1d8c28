"""What options put on the engine's configuration before a model is built."""

import pytest

from megatron_mixcpt.models.options import ModelOptions, options_of
from megatron_mixcpt.testing import run_distributed


def test_options_on_the_way_into_the_engine() -> None:
    run_distributed(check_fields_of_the_engine, 1, cpu_emulation=True)


def check_fields_of_the_engine() -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.models.configure import configure_model

    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    options = ModelOptions(engine_config={"glu_linear_offset": 1.0})
    configure_model(config, options)
    assert config.glu_linear_offset == 1.0
    assert options_of(config) is options
    with pytest.raises(AssertionError, match="no such_field"):
        configure_model(config, ModelOptions(engine_config={"such_field": 1}))

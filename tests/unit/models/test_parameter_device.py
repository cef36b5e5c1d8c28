"""Where parameters are made."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from pytest import MonkeyPatch

from megatron_mixcpt.models.parameter_device import parameter_device


def test_on_the_current_device_unless_the_cpu_is_asked_for(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    assert parameter_device(TransformerConfig(**sizes)) == 3
    assert parameter_device(TransformerConfig(**sizes, use_cpu_initialization=True)) == "cpu"

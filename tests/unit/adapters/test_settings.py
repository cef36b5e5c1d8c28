"""Settings of adapters: defaults, scaling, and what is refused."""

import math

import pytest

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.errors import ConfigError


def test_scaling_is_that_of_peft() -> None:
    assert LoRASettings(lora_rank=8).scale == 2.0
    assert LoRASettings(lora_rank=8, lora_alpha=4.0).scale == 0.5
    assert LoRASettings(lora_rank=16, lora_alpha=4.0, lora_use_rslora=True).scale == 1.0
    assert math.isclose(LoRASettings(lora_rank=8, lora_use_rslora=True).scale, 16 / math.sqrt(8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_rank": 0}, "--lora-rank 0: must be positive"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "--lora-alpha 0.0: must be positive"),
        ({"lora_rank": 4, "lora_dropout": 1.0}, "--lora-dropout 1.0: must be at least 0 and below 1"),
        ({"lora_rank": 4, "lora_target_modules": "linear_qkv,q_proj"}, "q_proj cannot have an adapter; choose from"),
        ({"lora_rank": 4, "lora_target_modules": "linear_qkv,"}, "an empty name cannot have an adapter"),
        ({"lora_alpha": 8.0}, "--lora-alpha has no effect without adapters: add --lora-rank"),
        ({"lora_use_rslora": True}, "--lora-use-rslora has no effect"),
    ],
)
def test_what_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRASettings(**given)


def test_a_folder_of_adapters_says_the_rest() -> None:
    assert LoRASettings(lora_adapter="adapter").is_given and not LoRASettings().is_given
    with pytest.raises(ConfigError, match="--lora-rank: --lora-adapter adapter says it already; remove --lora-rank"):
        LoRASettings(lora_adapter="adapter", lora_rank=4)

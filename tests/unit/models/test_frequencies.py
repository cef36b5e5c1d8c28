"""Frequencies of a rotary embedding by hand, for a head of 4 channels; against transformers: ``test_rotary.py``."""

import math

import pytest
import torch

from megatron_mixcpt.models.frequencies import attention_factor, hf_frequencies, is_simple
from megatron_mixcpt.models.options import ENGINE_LLAMA3, Rope

DEFAULT = torch.tensor([1.0, 0.01])  # 10000^(0), 10000^(-2/4)


def rope(kind: str, **parameters: object) -> Rope:
    return Rope({"rope_type": kind, "rope_theta": 10000.0, **parameters}, 4, 4, 64)


def test_frequencies_by_hand() -> None:
    torch.testing.assert_close(hf_frequencies(rope("linear", factor=4.0))[0], DEFAULT / 4)
    longrope = rope("longrope", short_factor=[1.0, 2.0], long_factor=[4.0, 5.0], original_max_position_embeddings=16)
    torch.testing.assert_close(hf_frequencies(longrope, 16)[0], DEFAULT / torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(hf_frequencies(longrope, 17)[0], DEFAULT / torch.tensor([4.0, 5.0]))
    assert attention_factor(longrope) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))  # 64 / 16
    # Twice the length: the base is (2 * 128 / 64 - 1)^(4 / 2) times as large.
    dynamic = hf_frequencies(rope("dynamic", factor=2.0), 128)[0]
    torch.testing.assert_close(dynamic, torch.tensor([1.0, (9 * 10000.0) ** -0.5]))


def test_what_the_engine_computes_itself() -> None:
    assert is_simple(rope("default")) and attention_factor(rope("default")) == 1.0
    assert is_simple(rope("llama3", factor=8.0, **ENGINE_LLAMA3))
    assert not is_simple(rope("llama3", factor=8.0, **{**ENGINE_LLAMA3, "low_freq_factor": 2.0}))
    assert attention_factor(rope("yarn", factor=4.0, original_max_position_embeddings=16)) == pytest.approx(
        0.1 * math.log(4) + 1
    )

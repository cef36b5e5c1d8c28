"""Which layers have a window: the tables against the attention that transformers computes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.errors import ConfigError
from tests.unit.conversion import tiny_hf

WINDOW = 5
SLIDING, FULL = "sliding_attention", "full_attention"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "mistral without": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"sliding_window": WINDOW}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "qwen2 off": ("qwen2", {"sliding_window": WINDOW, "max_window_layers": 0}),
    "qwen2": ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 3}),
    "qwen2 all": ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0}),
    "qwen2 none": ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 28}),
    "qwen3": (
        "qwen3",
        {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": [SLIDING, FULL, FULL, SLIDING]},
    ),
    "qwen3_moe": ("qwen3_moe", {"sliding_window": WINDOW, "use_sliding_window": True}),
    "smollm3": ("smollm3_tied", {"sliding_window": WINDOW, "use_sliding_window": True}),
    "smollm3 types": (
        "smollm3_tied",
        {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": [FULL, SLIDING, FULL, FULL]},
    ),
}


def config_of(name: str):
    """A tiny configuration whose class has derived ``layer_types`` from these keys, where they are not given."""
    base, changes = CONFIGS[name]
    config = tiny_hf.CONFIGS[base]
    values = {key: value for key, value in config.to_dict().items() if key != "layer_types"}
    return type(config)(**values | changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    model = tiny_hf.build_from(config)
    with torch.no_grad():
        weights = model(torch.arange(1, 13)[None], output_attentions=True).attentions
    num_keys = [int((layer[0, 0, -1] > 0).sum()) for layer in weights]  # that the last of 12 tokens sees
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    arguments = read_config(tmp_path).engine_arguments
    size, slides = arguments["window_size"], arguments["window_attn_skip_freq"]
    if size is None:
        assert slides is None and num_keys == [12] * 4
    else:
        assert size == (WINDOW - 1, 0)
        assert num_keys == [WINDOW if slide else 12 for slide in slides or [1] * 4]


def test_absent_and_null_are_what_transformers_reads(tmp_path: Path) -> None:
    """A config.json of Mistral without the key has a window of 4096, one with null has none."""
    tiny_hf.save("mistral", tmp_path)
    path = tmp_path / "config.json"
    written = path.read_text()
    assert '"sliding_window": null' in written and read_config(tmp_path).engine_arguments["window_size"] is None
    path.write_text(re.sub(r'.*"sliding_window": null,\n', "", written))
    assert type(tiny_hf.CONFIGS["mistral"]).from_pretrained(tmp_path).sliding_window == 4096
    assert read_config(tmp_path).engine_arguments["window_size"] == (4095, 0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"sliding_window": 32}, "sliding_window 32 cannot be trained: transformers has no sliding window"),
        ("qwen2", {"layer_types": [SLIDING] * 4}, "no window is in use: sliding_attention needs sliding_window"),
        ("qwen3", {"layer_types": [FULL] * 3}, "expected 4 entries, num_hidden_layers"),
        ("qwen3", {"layer_types": [FULL, "chunked_attention", FULL, FULL]}, "each sliding_attention or full_attention"),
        ("mistral", {"sliding_window": 32, "layer_types": [FULL, SLIDING] * 2}, "transformers does not read it"),
        ("mistral", {"sliding_window": 0}, "sliding_window 0 cannot be trained: expected an integer above 0, or null"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers -1 cannot be trained: expected an integer from 0"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = tiny_hf.CONFIGS[name].to_dict() | changes
    config["architectures"] = [type(tiny_hf.CONFIGS[name]).__name__.replace("Config", "ForCausalLM")]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(tmp_path)

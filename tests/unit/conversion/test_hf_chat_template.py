"""The template that a model was trained with is the one its folder names, and generation stops where turns end."""

import json

import pytest
from transformers import AutoTokenizer

from megatron_mixcpt.conversion.hf_chat_template import save_chat_template
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.errors import CheckpointError
from tests.unit.conversion import tiny_hf

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    tiny_hf.save_tokenizer(tiny_hf.save("llama", tmp_path / "hf"))
    return tmp_path / "hf"


def test_transformers_reads_the_saved_template(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "old"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6}))
    save_chat_template(folder, TEMPLATE, [7, 2])
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [2, 7], "temperature": 0.6}


def test_the_template_travels_from_checkpoint_to_checkpoint(folder, tmp_path):
    first = copy_hf_metadata(folder, tmp_path / "sft", chat_template=TEMPLATE, stop_token_ids=[7])
    second = copy_hf_metadata(first, tmp_path / "dpo")
    origins = [json.loads((kept / "source.json").read_text()) for kept in (first, second)]
    assert (second / "chat_template.jinja").read_text() == TEMPLATE
    assert origins[1]["base_model"] == "hf" and origins[0]["digest"] != origins[1]["digest"]
    assert copy_hf_metadata(first, tmp_path / "dpo") == second
    with pytest.raises(CheckpointError, match="another chat template: choose another --save folder"):
        copy_hf_metadata(folder, tmp_path / "sft", chat_template="{{ other }}")

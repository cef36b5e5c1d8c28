"""Benchmark tasks are prepared before the model is read; ``tests/distributed/test_evaluate.py`` runs them."""

import json
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.benchmarks import prepare_tasks, run_tasks
from megatron_mixcpt.evaluation.settings import TaskSettings
from tests.unit.data.tokenizer_classes import save_model_tokenizer


def test_code_is_not_run_unasked():
    with pytest.raises(ConfigError, match="--tasks humaneval runs programs that the model writes; allow this with"):
        prepare_tasks(TaskSettings(tasks=("humaneval",)))


TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>{% endfor %}"
PAIRS = [{"question_1": "a fox", "question_2": "a dog", "label": label} for label in (0, 1)]
PROBLEMS = [{"question": "Add 1 and 2.", "answer": "#### 3"}] * 2


@pytest.mark.parametrize("is_chat", [False, True], ids=["plain", "chat template"])
@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_prompts_have_one_bos_or_none(tmp_path: Path, monkeypatch, name: str, is_chat: bool) -> None:
    """One where the tokenizer writes one before a text, whether or not the chat template writes it too (case 26)."""
    folder = save_model_tokenizer(tmp_path / "model", name)
    if name == "llama3":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        (folder / "chat_template.jinja").write_text(TEMPLATE.removeprefix("{{ bos_token }}"))
    for task, rows in (("gsm8k", PROBLEMS), ("medical_question_pairs", PAIRS)):
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 1, **sizes)).eval()
    seen: list[list[int]] = []

    def call(self, inputs, attn_mask=None, labels=None):
        seen.extend(inputs.tolist())
        return model(inputs).logits

    def generate(self, context, max_length, stop, **options):
        seen.extend(context.tolist())
        return context

    monkeypatch.setattr(HFLM, "_model_call", call)
    monkeypatch.setattr(HFLM, "_model_generate", generate)
    settings = TaskSettings(
        tasks=("gsm8k", "medical_question_pairs"), task_data=tmp_path, num_fewshot=0, apply_chat_template=is_chat
    )
    with torch.no_grad():
        run_tasks(model, tokenizer, prepare_tasks(settings), settings)
    bos = tokenizer.bos_token_id if name == "llama3" else None
    assert len(seen) >= 4
    for tokens in seen:
        written = [token for token in tokens if token != tokenizer.pad_token_id]
        assert written.count(bos) == (bos is not None), tokenizer.decode(written)
        assert bos is None or written[0] == bos, tokenizer.decode(written)

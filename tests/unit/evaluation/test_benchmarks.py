"""Benchmark tasks are prepared before the model is read; ``tests/distributed/test_evaluate.py`` runs them."""

from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.benchmarks import make_runner, prepare_tasks
from megatron_mixcpt.evaluation.settings import TaskSettings
from tests.unit.data.tokenizer_classes import save_model_tokenizer


def test_code_is_not_run_unasked():
    with pytest.raises(ConfigError, match="--tasks humaneval runs programs that the model writes; allow this with"):
        prepare_tasks(TaskSettings(tasks=("humaneval",)))


TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize("is_chat", [False, True], ids=["plain", "chat template"])
@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_prompts_have_one_bos_or_none(tmp_path: Path, monkeypatch, name: str, is_chat: bool) -> None:
    """One where the tokenizer writes one before a text, whether or not the chat template writes it too (case 26)."""
    folder = save_model_tokenizer(tmp_path / "model", name)
    (folder / "chat_template.jinja").write_text(TEMPLATE if name == "llama3" else TEMPLATE.partition("}}")[2])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 1, **sizes)).eval()
    runner = make_runner(model, tokenizer, TaskSettings())
    seen: list[list[int]] = []

    def call(inputs, attn_mask=None, labels=None):
        seen.extend(inputs.tolist())
        return model(inputs).logits

    def generate(context, max_length, stop, **options):
        seen.extend(context.tolist())
        return context

    monkeypatch.setattr(runner, "_model_call", call)
    monkeypatch.setattr(runner, "_model_generate", generate)
    prompt = runner.apply_chat_template([{"role": "user", "content": "Add 1."}]) if is_chat else "Question: Add 1."
    for kind, arguments in (("loglikelihood", (prompt, " 3")), ("generate_until", (prompt, {"until": ["x"]}))):
        request = Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
        getattr(runner, kind)([request], disable_tqdm=True)
    bos = [tokenizer.bos_token_id] if name == "llama3" else []
    text = prompt.removeprefix(tokenizer.bos_token or "")
    expected = [*bos, *tokenizer(text, add_special_tokens=False).input_ids]
    assert [tokens[: len(expected)] for tokens in seen] == [expected, expected]

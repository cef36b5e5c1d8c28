"""The model in this process: the tokens of its prompts; ``tests/distributed/test_evaluate.py`` has the ranks."""

from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_mixcpt.evaluation.models import local_model
from megatron_mixcpt.evaluation.models.local_model import LocalModel, fits_here
from tests.unit.data.tokenizer_classes import save_model_tokenizer
from tests.unit.evaluation.models.conftest import TEMPLATE


@pytest.mark.parametrize("is_chat", [False, True], ids=["plain", "chat template"])
@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_prompts_have_one_bos_or_none(tmp_path: Path, monkeypatch, name: str, is_chat: bool) -> None:
    """One where the tokenizer writes one before a text, whether or not the chat template writes it too (case 26)."""
    folder = save_model_tokenizer(tmp_path / "model", name)
    (folder / "chat_template.jinja").write_text(TEMPLATE if name == "llama3" else TEMPLATE.partition("}}")[2])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 1, **sizes)).eval()
    runner = LocalModel(model, tokenizer, batch_size=8)
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


def test_whether_the_whole_model_has_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights in the type that is computed in, and no more than a part of what is free."""
    num_parameters = sum(tensor.numel() for tensor in LlamaForCausalLM.from_pretrained(folder).parameters())
    for dtype in (torch.float32, torch.bfloat16):
        needed = num_parameters * dtype.itemsize / local_model.MEMORY_SHARE
        for free, fits in ((needed + 1, True), (needed - 1, False)):
            monkeypatch.setattr(local_model, "_free_bytes", lambda free=free: free)
            assert fits_here(folder, dtype) == fits
    assert not fits_here(tmp_path / "of another machine", torch.float32)

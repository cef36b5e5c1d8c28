"""Windows over a document: every token scored once, with the context that is promised."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from megatron_mixcpt.evaluation.perplexity import TextSet, cut_windows
from megatron_mixcpt.evaluation.settings import PerplexitySettings
from tests.unit.data.tokenizer_classes import save_model_tokenizer


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 30, 31, 32, 33])
@pytest.mark.parametrize(("sequence_length", "stride"), [(8, 8), (8, 3), (8, 1), (1, 1)])
def test_every_token_is_scored_once_in_its_context(length, sequence_length, stride):
    document = np.arange(length + 1, dtype=np.int32)  # each token says where it stands; 0 is EOS
    scored = []
    for window in cut_windows(document, sequence_length, stride):
        assert 1 <= window.num_inputs <= sequence_length
        targets = window.tokens[-window.num_scored :].tolist()
        contexts = [token - window.tokens[0] for token in targets]
        least = sequence_length - stride + 1
        assert all(context >= min(token, least) for token, context in zip(targets, contexts, strict=True))
        scored += targets
    assert scored == list(range(1, length + 1))


def test_windows_by_hand():
    """EOS a b c d e f (here 0 to 6), 4 read at once, 2 scored at a time: EOS | a b c d, then b c d | e f."""
    first, second = cut_windows(np.arange(7, dtype=np.int32), sequence_length=4, stride=2)
    assert (first.tokens.tolist(), first.num_scored) == ([0, 1, 2, 3, 4], 4)
    assert (second.tokens.tolist(), second.num_scored) == ([2, 3, 4, 5, 6], 2)


@pytest.mark.parametrize(("name", "bos"), [("llama3", True), ("llama3", False), ("qwen2", True)])
def test_a_document_starts_as_in_training(tmp_path: Path, name: str, bos: bool) -> None:
    """After BOS where the tokenizer writes one; an EOS that is text inside a document ends nothing."""
    tokenizer = AutoTokenizer.from_pretrained(save_model_tokenizer(tmp_path / "model", name))
    (tmp_path / "a.txt").write_text("The fox <|endoftext|> jumps")
    texts = TextSet("a", str(tmp_path / "a.txt"), "text", tokenizer, bos=bos)
    ((window,),) = texts.parts(PerplexitySettings())
    ids = tokenizer("The fox <|endoftext|> jumps", add_special_tokens=False, split_special_tokens=True).input_ids
    start = tokenizer.bos_token_id if (name, bos) == ("llama3", True) else tokenizer.eos_token_id
    assert window.tokens.tolist() == [start, *ids] and window.num_scored == len(ids)
    assert tokenizer.eos_token_id not in ids and texts.num_documents == 1

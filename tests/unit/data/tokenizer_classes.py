"""Tiny model folders whose tokenizers are of the classes in use, each with added tokens that are special and not.

Only what decides the tokenizer is in them: tokenizer.json, tokenizer_config.json and config.json, no weights.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, processors, trainers

from tests.unit.data.tiny_tokenizer import TRAINING_TEXTS, save_tiny_tokenizer

BOS, TOOL = "<|begin_of_text|>", "<tool_call>"
CLASSES = ("gpt2", "smollm2", "llama3", "qwen2", "qwen2-derivative", "sentencepiece", "sentencepiece-legacy")


def save_model_tokenizer(folder: Path, name: str) -> Path:
    """Write the folder of one of ``CLASSES``, and return it."""
    if name.startswith("sentencepiece"):
        return _save_sentencepiece(folder, is_legacy=name.endswith("legacy"))
    model_type = "qwen2" if name.startswith("qwen2") else "llama"
    style = "gpt2" if name == "qwen2-derivative" else name
    save_tiny_tokenizer(folder, style, more_special_tokens=(BOS,) if name == "llama3" else ())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(TOOL, normalized=False)])
    settings: dict[str, Any] = {"eos_token": "<|endoftext|>"}
    if name == "llama3":
        pair = (BOS, tokenizer.token_to_id(BOS))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[pair])
        settings["bos_token"] = BOS
    tokenizer.save(str(folder / "tokenizer.json"))
    return _finish(folder, model_type, settings)


def _save_sentencepiece(folder: Path, *, is_legacy: bool) -> Path:
    """Spaces as U+2581, one before the text, and bytes for characters that the vocabulary lacks, as in Llama 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator([word for text in TRAINING_TEXTS for word in text.split()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]  # bytes are ordinary tokens
    tool = {"id": len(definition["model"]["vocab"]), "content": TOOL, "single_word": False, "lstrip": False}
    definition["added_tokens"].append(tool | {"rstrip": False, "normalized": False, "special": False})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": is_legacy}
    return _finish(folder, "llama", settings | {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def _finish(folder: Path, model_type: str, settings: dict[str, Any]) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder

"""A byte-level BPE tokenizer small enough to train in a test, saved as a Hugging Face folder."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TRAINING_TEXTS = [
    "The quick brown fox jumps over the lazy dog. It'll be fun, they said; it wasn't.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n\tprint(add(i, 22))\n",
    "Ça coûte 12,50 € déjà. Größe über alles. 你好,世界。 Привет, мир!",
] * 4
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def save_tiny_tokenizer(
    folder: Path,
    style: str = "gpt2",
    all_bytes: bool = True,
    vocab_size: int = 400,
    num_unused: int = 0,
    more_special_tokens: tuple[str, ...] = (),
) -> Path:
    """Write tokenizer.json and tokenizer_config.json into ``folder``, and return it.

    ``style`` is how text is split: ``gpt2``, ``llama3``, ``qwen2`` (NFC first) or ``smollm2`` (each digit alone).
    Without ``all_bytes`` the vocabulary lacks the bytes that its training texts lack, as SmolLM2's does. ``num_unused``
    more tokens make it larger.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style in ("gpt2", "smollm2"))
    if style == "gpt2":
        tokenizer.pre_tokenizer = split
    elif style == "smollm2":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN2_SPLIT if style == "qwen2" else LLAMA3_SPLIT), "isolated"), split]
        )
    if style == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *more_special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if all_bytes else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXTS, trainer)
    definition = json.loads(tokenizer.to_str())
    vocabulary = definition["model"]["vocab"]
    vocabulary |= {f"unused{number}": number for number in range(len(vocabulary), len(vocabulary) + num_unused)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder

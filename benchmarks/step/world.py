"""What the step benchmarks train on: a small Llama of random weights and a mixture of random tokens."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_mixcpt.data.mixture.indexed import token_type_for, write_index
from megatron_mixcpt.data.mixture.manifest import DatasetSummary, MixtureManifest, TokenizerIdentity
from megatron_mixcpt.data.tokens.tokenizer_files import tokenizer_digest
from megatron_mixcpt.jobs.digests import file_digest

NUM_DOCUMENTS = 400


def make_world(
    root: Path,
    *,
    hidden_size: int,
    num_layers: int,
    vocab_size: int,
    tied: bool = True,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    device: str = "cpu",
) -> tuple[Path, Path]:
    """Fill ``root`` with ``model`` (bfloat16) and ``mixture``; returns the two.

    Default: heads of 64, half as many for keys, feed-forward of 3 times the hidden size. ``device``: where the weights
    are drawn.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads or hidden_size // 64,
        num_key_value_heads=num_kv_heads or hidden_size // 128,
        max_position_embeddings=32_768,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.device(device):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "model")
    words = Tokenizer(WordLevel({f"<{index}>": index for index in range(vocab_size)}, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<0>").save_pretrained(root / "model")
    _make_mixture(root / "mixture", root / "model", vocab_size)
    return root / "model", root / "mixture"


def training_argv(model: str, mixture: str, options: dict, steps: int) -> list[str]:
    """The trainer's command line for ``steps`` steps; ``options`` has ``seq_length`` and ``microbatches``."""
    return [
        *("--hf-model", model, "--mixture", mixture, "--bf16", "--train-iters", str(steps)),
        *("--seq-length", str(options["seq_length"]), "--global-batch-size", str(options["microbatches"])),
        *("--log-interval", "1000", "--num-workers", "0"),
    ]


def _make_mixture(folder: Path, tokenizer_dir: Path, vocab_size: int) -> None:
    """One kind, documents of 500 to 2,000 random tokens."""
    folder.mkdir()
    random = np.random.default_rng(0)
    dtype = token_type_for(vocab_size)
    lengths = random.integers(500, 2000, NUM_DOCUMENTS)
    documents = [np.append(random.integers(1, vocab_size, length - 1), 0) for length in lengths]
    np.concatenate(documents).astype(dtype).tofile(folder / "cpt.bin")
    write_index(folder / "cpt.idx", lengths.astype(np.int32), dtype)
    digests = {f"{suffix}_sha256": file_digest(folder / f"cpt.{suffix}") for suffix in ("bin", "idx")}
    kinds = {"cpt": DatasetSummary(len(lengths), int(lengths.sum()), len(lengths), {}, 0, (), **digests)}
    identity = TokenizerIdentity(str(tokenizer_dir), tokenizer_digest(tokenizer_dir), "<0>", 0, vocab_size)
    MixtureManifest(folder, "0", identity, {}, kinds).save()

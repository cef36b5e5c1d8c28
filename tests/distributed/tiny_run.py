"""A tiny world to train in: Hugging Face models of both architectures and a mixture; how to run and read a run."""

from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from megatron_mixcpt.data.mixture.indexed import token_type_for, write_index
from megatron_mixcpt.data.mixture.manifest import DatasetSummary, MixtureManifest, TokenizerIdentity
from megatron_mixcpt.data.tokens.tokenizer_files import tokenizer_digest
from megatron_mixcpt.jobs.digests import file_digest
from megatron_mixcpt.testing import run_distributed
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

# Divides by neither 2 nor 3: every tensor parallel layout pads the vocabulary.
VOCAB_SIZE = 385
SEQ_LENGTH = 64
GLOBAL_BATCH_SIZE = 4
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "bos_token_id": None,
    "eos_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def build_model(architecture: str, seed: int) -> PreTrainedModel:
    """``llama`` with Llama 3.2's rope scaling and tied embeddings, or ``qwen2``; every parameter random, norms too."""
    torch.manual_seed(seed)
    if architecture == "llama":
        config = LlamaConfig(
            **SHAPE,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=LLAMA3_ROPE,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config)
    else:
        config = Qwen2Config(**SHAPE, max_position_embeddings=4096, rope_theta=1e6, tie_word_embeddings=False)
        model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.float().eval()


def make_world(root: Path) -> Path:
    """Fill ``root`` with ``llama``, ``llama-teacher``, ``qwen2``, ``qwen2-teacher`` and ``mixture``; returns it."""
    for seed, name in enumerate(("llama", "llama-teacher", "qwen2", "qwen2-teacher")):
        build_model(name.split("-")[0], seed).save_pretrained(root / name)
        save_tiny_tokenizer(
            root / name, "qwen2"
        )  # what transformers builds for a qwen2 config, whatever the folder says
    make_mixture(root / "mixture", root / "llama")
    return root


def make_mixture(folder: Path, tokenizer_dir: Path, seed: int = 0) -> None:
    """Three kinds of random documents, each ending with token 0, with the manifest that training reads."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    kinds = {}
    for kind, num_samples in (("cpt", 30), ("sft", 20), ("dpo", 10)):
        lengths = random.integers(20, 200, num_samples)
        documents = [np.append(random.integers(1, VOCAB_SIZE, length - 1), 0) for length in lengths]
        np.concatenate(documents).astype(token_type_for(VOCAB_SIZE)).tofile(folder / f"{kind}.bin")
        write_index(folder / f"{kind}.idx", lengths.astype(np.int32), token_type_for(VOCAB_SIZE))
        digests = {f"{suffix}_sha256": file_digest(folder / f"{kind}.{suffix}") for suffix in ("bin", "idx")}
        kinds[kind] = DatasetSummary(num_samples, int(lengths.sum()), num_samples, {}, 0, (), **digests)
    identity = TokenizerIdentity(str(tokenizer_dir), tokenizer_digest(tokenizer_dir), "<|endoftext|>", 0, VOCAB_SIZE)
    MixtureManifest(folder, "0", identity, {}, kinds).save()


def flags(world: Path, architecture: str = "llama", *, iterations: int | None) -> list[str]:
    """Flags that every run of a test shares."""
    return [
        *("--hf-model", str(world / architecture)),
        *("--teacher", str(world / f"{architecture}-teacher")),
        *("--mixture", str(world / "mixture")),
        *("--seq-length", str(SEQ_LENGTH)),
        *("--global-batch-size", str(GLOBAL_BATCH_SIZE)),
        *(("--train-iters", str(iterations)) if iterations else ()),
        *("--lr", "1e-2", "--min-lr", "1e-3"),
        *("--log-interval", "1", "--num-workers", "0"),
    ]


def train(world_size: int, argv: list[str], log_dir: Path) -> dict[str, list[float]]:
    """Run the training entry on ``world_size`` ranks; returns what TensorBoard shows: key -> value per iteration."""
    run_distributed(
        train_rank, world_size, [*argv, "--tensorboard-dir", str(log_dir)], cpu_emulation=True, timeout_s=240
    )
    return curves(log_dir)


def curves(log_dir: Path) -> dict[str, list[float]]:
    """What TensorBoard shows of a run: key -> value per iteration."""
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {key: [event.value for event in events.Scalars(key)] for key in events.Tags()["scalars"]}


def train_rank(argv: list[str]) -> None:
    """On each rank: what tools/pretrain_mixcpt.py does, but that an exception is raised to the caller."""
    from megatron_mixcpt.training.pretraining.cpt import main

    main.__wrapped__(argv)

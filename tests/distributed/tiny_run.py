"""A tiny world to train in: Hugging Face models and a mixture; how to run and read a run."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_mixcpt.data.mixture.indexed import token_type_for, write_index
from megatron_mixcpt.data.mixture.manifest import DatasetSummary, MixtureManifest, TokenizerIdentity
from megatron_mixcpt.data.tokens.tokenizer_files import tokenizer_digest
from megatron_mixcpt.jobs.digests import file_digest
from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

SEQ_LENGTH = 64
GLOBAL_BATCH_SIZE = 4


def make_world(root: Path, kinds: Sequence[str] = ("llama", "qwen2")) -> Path:
    """Fill ``root`` with a model and a ``-teacher`` of each kind of ``tiny_models`` and ``mixture``; returns it."""
    for seed, name in enumerate(name for kind in kinds for name in (kind, f"{kind}-teacher")):
        build_model(name.removesuffix("-teacher"), seed).save_pretrained(root / name)
        save_tiny_tokenizer(
            root / name, "qwen2"
        )  # what transformers builds for a qwen2 config, whatever the folder says
    make_mixture(root / "mixture", root / kinds[0])
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


def train_rank(argv: list[str], output: str | None = None) -> None:
    """On each rank: what tools/pretrain_mixcpt.py does, but that an exception is raised to the caller.

    Args:
        output: file that gets what the rank prints, C libraries included; None leaves it on the terminal.
    """
    if output:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
    from megatron_mixcpt.training.pretraining.cpt import main

    main.__wrapped__(argv)

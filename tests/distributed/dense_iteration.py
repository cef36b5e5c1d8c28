"""The first iteration of a run, dense: what the training entry's curves are compared with.

It shares nothing with the package but the order of the samples.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.distributed.tiny_run import GLOBAL_BATCH_SIZE, SEQ_LENGTH, VOCAB_SIZE

if TYPE_CHECKING:
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig


def engine_dataset_config(split: str = "100,0,0", **options: Any) -> "GPTDatasetConfig":
    """The engine's dataset settings of a tiny run."""
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.tokenizers import MegatronTokenizer

    metadata = {"library": "null-text"}
    return GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQ_LENGTH,
        split=split,
        tokenizer=MegatronTokenizer.from_pretrained(metadata_path=metadata, vocab_size=VOCAB_SIZE, eod_id=0),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        **options,
    )


def first_batch(world: Path) -> Tensor:
    """The tokens [b, s + 1] of the first global batch, as the samples' order has them."""
    from megatron_mixcpt.data.blend import build_mixture_datasets
    from megatron_mixcpt.data.manifest import MixtureManifest
    from megatron_mixcpt.data.mixture import plan_mixture

    manifest = MixtureManifest.load(world / "mixture")
    plan = plan_mixture(manifest, sequence_length=SEQ_LENGTH, epochs=1)
    dataset, _ = build_mixture_datasets(manifest, plan, engine_dataset_config(), num_valid_sequences=0)
    samples = [dataset[i] for i in range(GLOBAL_BATCH_SIZE)]
    return torch.stack([torch.cat([sample["tokens"], sample["labels"][-1:]]) for sample in samples])


def expected_first_iteration(
    world: Path, architecture: str, tokens: Tensor, *, forward_divergence: bool = False, temperature: float = 1.0
) -> dict[str, float]:
    """Losses of the first batch and the gradient's norm, dense, written down from the paper (Eq. 1, 4, 6 and 7).

    The divergence is KL(student || teacher), or with `forward_divergence` KL(teacher || student), of both models'
    logits over the temperature, times its square (Hinton et al. 2015, section 2).
    """
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float32)
        for name in (architecture, f"{architecture}-teacher")
    )
    with torch.no_grad():
        original = teacher(tokens[:, :-1]).logits.double()
    label, top = tokens[:, 1:, None], original.argmax(-1, keepdim=True)
    label_value, top_value = original.gather(-1, label), original.gather(-1, top)
    swapped = original.scatter(-1, top, label_value).scatter(-1, label, top_value)
    logits = student(tokens[:, :-1]).logits.double()
    ntp = -logits.log_softmax(-1).gather(-1, label).mean()
    log_p, log_q = ((part / temperature).log_softmax(-1) for part in (logits, swapped))
    if forward_divergence:
        log_p, log_q = log_q, log_p
    lssd = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    (0.8 * ntp + 0.2 * lssd).backward()
    return {
        "ntp loss": ntp.item(),
        "lssd loss": lssd.item(),
        "swapped fraction": (label != top).double().mean().item(),
        "grad-norm": torch.stack([parameter.grad.norm() for parameter in student.parameters()]).norm().item(),
    }

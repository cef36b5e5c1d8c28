"""The first iteration of a run, dense: what the training entry's curves are compared with.

It shares nothing with the package but the order of the samples.
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.distributed import dense_router_losses
from tests.distributed.tiny_models import load_model
from tests.distributed.tiny_run import GLOBAL_BATCH_SIZE, SEQ_LENGTH
from tests.distributed.tiny_shape import VOCAB_SIZE

if TYPE_CHECKING:
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig


KINDS = ("cpt", "sft", "dpo")


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


def first_batch(world: Path) -> tuple[Tensor, Tensor]:
    """The tokens [b, s + 1] of the first global batch, as the samples' order has them, and each sample's kind [b]."""
    from megatron_mixcpt.data.datasets.mixture_datasets import build_mixture_datasets
    from megatron_mixcpt.data.mixture.manifest import MixtureManifest
    from megatron_mixcpt.data.mixture.plan import plan_mixture

    manifest = MixtureManifest.load(world / "mixture")
    plan = plan_mixture(manifest, sequence_length=SEQ_LENGTH, epochs=1)
    dataset, _ = build_mixture_datasets(manifest, plan, engine_dataset_config(), num_valid_sequences=0)
    samples = [dataset[i] for i in range(GLOBAL_BATCH_SIZE)]
    tokens = torch.stack([torch.cat([sample["tokens"], sample["labels"][-1:]]) for sample in samples])
    return tokens, torch.tensor([int(sample["dataset_id"]) for sample in samples])


def expected_first_iteration(
    world: Path,
    architecture: str,
    *,
    forward_divergence: bool = False,
    temperature: float = 1.0,
    documents: bool = False,
    router_losses: bool = False,
    masks_document_starts: bool = False,
) -> dict[str, float]:
    """What the first batch reports, and its gradient's norm; dense, written down from the paper (Eq. 1, 4, 6 and 7).

    With ``documents``, no document attends to another: each goes through the model alone. With ``router_losses``, those
    of ``dense_router_losses.py`` are in the gradient and in what is returned; each sequence is a microbatch. With
    ``masks_document_starts`` (--eod-mask-loss) all figures are means over the tokens that do not follow token 0.

    The divergence is KL(student || teacher), or with `forward_divergence` KL(teacher || student), of both models'
    logits over the temperature, times its square (Hinton et al. 2015, section 2).
    """
    tokens, kinds = first_batch(world)
    student, teacher = (load_model(world / name) for name in (architecture, f"{architecture}-teacher"))
    with torch.no_grad():
        original = _logits(teacher, tokens[:, :-1], documents)
    label, top = tokens[:, 1:, None], original.argmax(-1, keepdim=True)
    label_value, top_value = original.gather(-1, label), original.gather(-1, top)
    swapped = original.scatter(-1, top, label_value).scatter(-1, label, top_value)
    logits = _logits(student, tokens[:, :-1], documents)
    counts = tokens[:, :-1] != 0 if masks_document_starts else torch.ones_like(tokens[:, :-1], dtype=torch.bool)
    assert not masks_document_starts or not counts.all()
    ntp = -logits.log_softmax(-1).gather(-1, label)[counts].mean()
    warm, log_q = ((part / temperature).log_softmax(-1) for part in (logits, swapped))
    log_from, log_to = (log_q, warm) if forward_divergence else (warm, log_q)
    lssd = temperature**2 * (log_from.exp() * (log_from - log_to)).sum(-1)
    loss = 0.8 * ntp + 0.2 * lssd[counts].mean()
    auxiliary = _router_losses(student, tokens[:, :-1]) if router_losses else {}
    (loss + dense_router_losses.penalty(auxiliary, student.config.get_text_config().num_hidden_layers)).backward()
    of_kind = {kind: counts & (kinds == kind)[:, None] for kind in kinds.unique().tolist()}
    by_kind = {f"lssd loss {KINDS[kind]}": lssd[chosen].mean().item() for kind, chosen in of_kind.items()}
    return (
        by_kind
        | {key: value.item() for key, value in auxiliary.items()}
        | {
            "loss": loss.item(),
            "ntp loss": ntp.item(),
            "lssd loss": lssd[counts].mean().item(),
            "top-1 agreement": (logits.argmax(-1, keepdim=True) == top)[counts].double().mean().item(),
            "teacher top-1 probability": (original / temperature).softmax(-1).amax(-1)[counts].mean().item(),
            "teacher entropy": _entropy(original / temperature)[counts].mean().item(),
            "student top-1 probability": warm.gather(-1, top)[counts].exp().mean().item(),
            "swapped fraction": (label != top)[counts].double().mean().item(),
            "grad-norm": torch.stack(
                [parameter.grad.norm() for parameter in student.parameters() if parameter.grad is not None]
            )
            .norm()
            .item(),
        }
    )


def _entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


def _router_losses(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """Their means over the sequences of tokens [b, s]."""
    logits = [model(row[None], output_router_logits=True).router_logits for row in tokens]
    num_chosen = model.config.get_text_config().num_experts_per_tok
    losses = [dense_router_losses.router_losses(layers, num_chosen) for layers in logits]
    return dense_router_losses.weighted(losses, [1.0] * len(losses))


def _logits(model: PreTrainedModel, tokens: Tensor, documents: bool) -> Tensor:
    """Float64 logits [b, s, v] of tokens [b, s], where a document ends with token 0."""
    if not documents:
        return model(tokens).logits.double()
    rows = []
    for row in tokens:
        ends = [*((row == 0).nonzero().flatten() + 1).tolist(), len(row)]
        parts = (row[start:end] for start, end in pairwise([0, *ends]) if start < end)
        rows.append(torch.cat([model(part[None]).logits[0] for part in parts]))
    return torch.stack(rows).double()

"""The routers' auxiliary losses written down once more, and SFT and DPO with them; see ``dense_alignment.py``.

A microbatch is a row. Its load-balancing loss is E * sum_e f_e P_e, where f_e is the share of the choices that fell on
expert e and P_e the mean of its softmax over all experts (Switch Transformer, arXiv:2101.03961, Eq. 4 to 6, for k
choices); its z loss is the mean of the squared log-sum-exp (ST-MoE, arXiv:2202.08906, Eq. 5). They are added up over
layers, and a row counts in the loss as its tokens do (SFT) or its pair does (DPO).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tests.distributed.dense_alignment import BETA, Dense, rows

COEFFICIENTS = {"load balancing loss": 0.05, "router z loss": 0.02}
FLAGS = [
    *("--moe-router-load-balancing-type", "aux_loss", "--moe-aux-loss-coeff", str(COEFFICIENTS["load balancing loss"])),
    *("--moe-z-loss-coeff", str(COEFFICIENTS["router z loss"])),
]


def router_losses(logits: Sequence[Tensor], num_chosen: int) -> dict[str, Tensor]:
    """The mean over layers of one microbatch's losses; ``logits`` of each layer [tokens, experts]."""
    balance, z = [], []
    for layer in logits:
        chosen = F.one_hot(layer.topk(num_chosen).indices, layer.size(1)).sum(1).float()
        balance.append(layer.size(1) * (chosen.mean(0) / num_chosen * layer.softmax(-1).mean(0)).sum())
        z.append(layer.logsumexp(-1).square().mean())
    return {"load balancing loss": torch.stack(balance).mean(), "router z loss": torch.stack(z).mean()}


def weighted(losses: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The means over microbatches, each with its weight."""
    shares = torch.tensor(weights) / sum(weights)
    return {key: sum(share * loss[key] for share, loss in zip(shares, losses, strict=True)) for key in COEFFICIENTS}


def penalty(losses: dict[str, Tensor], num_layers: int) -> Tensor:
    """What is added to the loss that is minimised, of means over layers."""
    return sum(COEFFICIENTS[key] * num_layers * loss for key, loss in losses.items())


def expected_alignment(stage: str, folder: Path, samples: Path, num_iterations: int) -> dict[str, list[float]]:
    """SFT or DPO, a sample in a row; ``loss`` is without the auxiliary losses, ``grad-norm`` with them."""
    dense, reference = Dense(folder), Dense(folder).model
    config = dense.model.config

    def log_prob(model: PreTrainedModel, turns: list[dict]) -> tuple[Tensor, int, list[Tensor]]:
        ids, mask = dense.encode(turns)
        output = model(ids[None, :-1], output_router_logits=True)
        log_probs = F.log_softmax(output.logits[0], -1).gather(1, ids[1:, None])[:, 0]
        return log_probs[mask[1:]].sum(), int(mask[1:].sum()), list(output.router_logits)

    def loss(model: PreTrainedModel) -> dict[str, Tensor]:
        main, weights, auxiliary = [], [], []
        for row in rows(samples):
            documents = [row["messages"]] if stage == "sft" else [_turns(row, side) for side in ("chosen", "rejected")]
            sums, counts, logits = zip(*(log_prob(model, turns) for turns in documents), strict=True)
            layers = [torch.cat(layer) for layer in zip(*logits, strict=True)]
            auxiliary.append(router_losses(layers, config.num_experts_per_tok))
            if stage == "sft":
                main.append(-sums[0])
                weights.append(counts[0])
            else:
                with torch.no_grad():
                    frozen = [log_prob(reference, turns)[0] for turns in documents]
                main.append(-F.logsigmoid(BETA * ((sums[0] - frozen[0]) - (sums[1] - frozen[1]))))
                weights.append(1)
        means = weighted(auxiliary, weights)
        added = penalty(means, config.num_hidden_layers)
        detached = {key: value.detach() for key, value in means.items()}
        return {"loss": sum(main) / sum(weights) + added - added.detach()} | detached

    return dense.train(num_iterations, loss)


def _turns(pair: dict, side: str) -> list[dict]:
    return [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]

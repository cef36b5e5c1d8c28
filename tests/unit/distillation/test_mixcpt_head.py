"""The head on one rank: from all logits and in chunks the same losses, in the sequence-first layout."""

import torch

from megatron_mixcpt.distillation.mixcpt_head import MixCPTHead, MixCPTTargets
from megatron_mixcpt.distillation.wrapper import LastStage, OutputWeight
from megatron_mixcpt.losses.fused_linear import SummedMixCPTLoss
from megatron_mixcpt.losses.lssd import mixcpt_loss
from megatron_mixcpt.objective import Divergence, Objective

OBJECTIVE = Objective(alpha=0.3, divergence=Divergence(direction="forward", teacher_entropy=True))


class OutputLayer(torch.nn.Linear):
    """Called as the engine's output layer is."""

    def forward(self, hidden_states: torch.Tensor, weight: torch.Tensor | None = None):
        assert weight is None
        return super().forward(hidden_states), None


def last_stage(seed: int) -> LastStage:
    torch.manual_seed(seed)
    hidden_states, output_layer = torch.randn(6, 2, 8, requires_grad=True), OutputLayer(8, 20, bias=False)
    return LastStage(hidden_states, output_layer, None, OutputWeight(output_layer.weight))


def targets(**options) -> MixCPTTargets:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 18, (2, 6), generator=generator)
    loss_mask = (torch.rand(2, 6, generator=generator) > 0.3).float()
    distill_mask = torch.rand(2, 6, generator=generator) > 0.5
    return MixCPTTargets(labels, loss_mask, distill_mask, **options)


def compute(chunk_tokens: int, **options) -> SummedMixCPTLoss:
    head = MixCPTHead(OBJECTIVE, vocab_size=18, tp_group=None, chunk_tokens=chunk_tokens)
    return head(last_stage(0), last_stage(1), targets(**options))


def test_losses_are_those_of_the_objective() -> None:
    result, asked = compute(0), targets()
    expected = mixcpt_loss(
        last_stage(0).products(),
        last_stage(1).products(),
        asked.labels.T,
        OBJECTIVE,
        tp_group=None,
        vocab_size=18,
        distill_mask=asked.distill_mask.T,
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result.tokens, expected, strict=True))
    assert torch.equal(result.loss_sum, (expected.loss * asked.loss_mask.T).sum())
    assert result.loss_sum.requires_grad and not result.tokens.loss.requires_grad
    assert result.teacher_ntp is None


def test_chunks_give_the_same() -> None:
    in_chunks, expected = compute(5), compute(0)
    torch.testing.assert_close(in_chunks.loss_sum, expected.loss_sum)
    for name, tensor in expected.tokens._asdict().items():
        torch.testing.assert_close(getattr(in_chunks.tokens, name), tensor, msg=name)


@torch.no_grad()
def test_the_teacher_is_measured_on_request() -> None:
    for chunk_tokens in (0, 5):
        measured = compute(chunk_tokens, measures_teacher=True).teacher_ntp
        expected = mixcpt_loss(
            last_stage(1).products(), None, targets().labels.T, OBJECTIVE, tp_group=None, vocab_size=18
        )
        torch.testing.assert_close(measured, expected.ntp)

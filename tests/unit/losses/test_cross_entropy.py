"""Next-token prediction on one rank equals torch's cross-entropy."""

import torch

from megatron_mixcpt.losses.cross_entropy import vocab_parallel_cross_entropy


def test_equals_torch_without_the_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 4, 50, generator=generator) * 3).requires_grad_()
    labels = torch.randint(0, 47, (3, 4), generator=generator)
    labels[0, 0] = -100
    loss = vocab_parallel_cross_entropy(logits, labels, tp_group=None, vocab_size=47)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    options = {"ignore_index": -100, "reduction": "none"}
    expected = torch.nn.functional.cross_entropy(logits[..., :47].flatten(0, 1), labels.flatten(), **options)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(loss, expected.view(3, 4))
    torch.testing.assert_close(gradient, expected_gradient)

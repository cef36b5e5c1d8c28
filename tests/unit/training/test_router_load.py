"""How evenly routers spread tokens: the figures by hand, and what is counted on two ranks and pipeline stages."""

from unittest.mock import patch

import torch

from megatron_mixcpt.testing import run_distributed


def test_router_load() -> None:
    run_distributed(check_router_load, 2, cpu_emulation=True)


def check_router_load() -> None:
    check_figures()
    check_counts()


def check_figures() -> None:
    """Layers of 4 experts: 12 tokens of which 6 in one expert are twice the mean, and one of 8 experts has none."""
    from megatron_mixcpt.training.router_load import balance

    counts = torch.tensor([[3, 3, 3, 3], [6, 4, 2, 0], [0, 0, 0, 0]])  # the last layer has no experts
    assert {key: value.item() for key, value in balance(counts).items()} == {
        "expert load max/mean": 2.0,
        "experts without tokens": 1 / 8,
    }
    assert all(value.item() == 0 for value in balance(torch.zeros(2, 4, dtype=torch.int64)).values())


class Router(torch.nn.Module):
    """Decides as it is told; for the hook, the engine's."""

    def __init__(self, layer_number: int) -> None:
        super().__init__()
        self.layer_number = layer_number

    def forward(self, experts: list[int]) -> tuple[None, torch.Tensor]:
        """Tokens go to one of four experts each."""
        return None, torch.nn.functional.one_hot(torch.tensor(experts), 4).bool()


def check_counts() -> None:
    """Both ranks' microbatches together; not what runs without gradients, nor in evaluation."""
    from megatron_mixcpt.training import router_load

    rank = torch.distributed.get_rank()
    load, router = router_load.RouterLoad(num_layers=2, num_experts=4), Router(rank + 1)  # a stage each
    with patch.object(router_load, "TopKRouter", Router):
        load.watch([torch.nn.Sequential(router)])
    with torch.no_grad():
        router([0, 0, 0])
    router.eval()([0, 0, 0])
    router.train()([[0, 1, 2, 3], [2, 2]][rank])
    router([[0, 1, 2, 3], [2, 1]][rank])
    # The first layer has 2 tokens in each expert; the second 4, of which 3 in one: three times the mean.
    assert {key: value.item() for key, value in load.take().items()} == {
        "expert load max/mean": 3.0,
        "experts without tokens": 2 / 8,
    }
    assert not any(load.take().values())  # it has begun anew

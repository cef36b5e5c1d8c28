"""The distance to the original parameters, sharded over tensor and pipeline ranks of real process groups."""

import torch
import torch.distributed as dist

from megatron_mixcpt.losses.l2 import l2_distance
from megatron_mixcpt.testing import run_distributed


def check_each_parameter_is_counted_once(params: list[torch.Tensor], expected: float) -> None:
    """On 2 x 2 ranks: a stage's two ranks hold half of its matrix each and both its vector."""
    rank = dist.get_rank()
    tensor_groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pipeline_groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    stage, tensor_rank = rank // 2, rank % 2
    mine = [params[stage].chunk(2)[tensor_rank], params[2 + stage]]
    groups = [tensor_groups[stage], pipeline_groups[tensor_rank]]
    origin = [torch.zeros_like(param) for param in mine]
    distance = l2_distance(mine, origin, is_duplicate=[False, tensor_rank > 0], groups=groups)
    torch.testing.assert_close(distance.item(), expected, rtol=1e-6, atol=0.0)


def test_each_parameter_is_counted_once() -> None:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator) for shape in ((6, 5), (4, 3), (7,), (8,))]
    expected = sum(param.double().square().sum().item() for param in params)
    run_distributed(check_each_parameter_is_counted_once, 4, params, expected)

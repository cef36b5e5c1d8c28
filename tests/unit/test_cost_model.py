"""The cost of a run on paper, against figures that are known or follow by hand."""

import pytest

from benchmarks.step.cost_model import LAYOUTS, Machine, layout_of, plan_step
from megatron_mixcpt.planning.layout import PlannedRun
from megatron_mixcpt.planning.shapes import PRESETS

NO_TRAFFIC = Machine(flops=5e14, tensor_bandwidth=float("inf"))


@pytest.mark.parametrize("distilled", [0.5, 1.0])
def test_without_traffic_the_teacher_costs_its_forward_pass(distilled: float) -> None:
    model, planned = PRESETS["llama-3-8b"], layout_of(tensor=2, pipeline=4, data=8)
    plain, mixcpt = (plan_step(model, planned, NO_TRAFFIC, distilled=share) for share in (0.0, distilled))
    assert mixcpt.seconds / plain.seconds == pytest.approx((3 + distilled) / 3)
    assert mixcpt.stage_bytes / plain.stage_bytes == 1.5
    assert mixcpt.bubble == plain.bubble == 3 / 240


def test_layouts_use_their_gpus_and_divide_the_batch() -> None:
    for name, layouts in LAYOUTS.items():
        for num_gpus, planned in layouts.items():
            sizes = PlannedRun.of(PRESETS[name], planned).sizes  # which checks that the copies divide the batch
            assert num_gpus == planned.num_gpus == sizes.ranks_per_copy * sizes.data

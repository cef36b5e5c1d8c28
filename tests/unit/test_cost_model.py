"""The cost of a run on paper, against figures that are known or follow by hand."""

import pytest

from benchmarks.step.cost_model import LAYOUTS, MODELS, Layout, Machine, plan_step

NO_TRAFFIC = Machine(flops=5e14, tensor_bandwidth=float("inf"))
BATCH = {"seq_length": 2048, "num_sequences": 1920}


def test_sizes_are_those_of_the_models() -> None:
    assert MODELS["llama-3-8b"].params == pytest.approx(8.03e9, rel=1e-3)  # as their cards say
    assert MODELS["llama-3-70b"].params == pytest.approx(70.6e9, rel=1e-3)


@pytest.mark.parametrize("distilled", [0.5, 1.0])
def test_without_traffic_the_teacher_costs_its_forward_pass(distilled: float) -> None:
    layout = Layout(tensor=2, pipeline=4, data=8)
    plain, mixcpt = (
        plan_step(MODELS["llama-3-8b"], layout, NO_TRAFFIC, **BATCH, distilled=share) for share in (0.0, distilled)
    )
    assert mixcpt.seconds / plain.seconds == pytest.approx((3 + distilled) / 3)
    assert mixcpt.stage_bytes / plain.stage_bytes == 1.5
    assert mixcpt.bubble == plain.bubble == 3 / 240


def test_layouts_use_their_gpus_and_divide_the_batch() -> None:
    for layouts in LAYOUTS.values():
        for num_gpus, layout in layouts.items():
            assert layout.tensor * layout.pipeline * layout.data == num_gpus
            assert BATCH["num_sequences"] % layout.data == 0

"""Which device a rank takes, and that a number of ranks that no model fits is refused.

Groups are started in ``tests/distributed/test_evaluate.py``.
"""

import pytest
import torch
import torch.distributed as dist

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.inference import parallel_groups
from megatron_mixcpt.inference.parallel_groups import start_ranks


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 1), "TP 2 x PP 1 needs 2 processes or a multiple, not 3: use torchrun"),
        ((1, 2, 2), "TP 1 x PP 2 x EP 2 needs 4 processes or a multiple, not 3: use torchrun"),
    ],
)
def test_ranks_that_make_no_complete_model(
    sizes: tuple[int, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=message):
        start_ranks(*sizes)


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_a_rank_takes_the_device_of_its_local_number(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set before the process group is made, and the group is told."""
    calls: list[tuple[str, object]] = []
    monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
    monkeypatch.setenv("LOCAL_RANK", str(num_ranks - 1))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, device_id, **__: calls.append(("group", device_id)))
    for engine, name in (
        (parallel_groups.parallel_state, "initialize_model_parallel"),
        (parallel_groups, "model_parallel_cuda_manual_seed"),
    ):
        monkeypatch.setattr(engine, name, lambda *_, **__: None)
    start_ranks()
    device = torch.device("cuda", num_ranks - 1)
    assert calls == [("device", device), ("group", device)]

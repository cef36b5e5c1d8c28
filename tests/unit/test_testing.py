"""What `run_distributed` gives the ranks, and what it says when one of them fails."""

import os

import pytest
import torch
import torch.distributed as dist

from megatron_mixcpt.testing import RankFailedError, run_distributed


def test_ranks_have_a_group_and_a_thread_each() -> None:
    run_distributed(check_rank, 3, "argument")


def check_rank(argument: str) -> None:
    assert argument == "argument"
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    assert dist.get_world_size() == int(os.environ["WORLD_SIZE"]) == 3 and total == 3
    assert torch.get_num_threads() == 1


def test_a_failing_rank_is_told() -> None:
    with pytest.raises(RankFailedError, match=r"(?s)rank 1 of 2 .*ValueError: on rank 1"):
        run_distributed(fail_on_rank_1, 2)


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("on rank 1")
    dist.barrier()


def test_a_rank_that_hangs_is_ended() -> None:
    with pytest.raises(RankFailedError, match=r"ranks \[0, 1\] had not finished after 2"):
        run_distributed(hang_on_rank_1, 2, timeout_s=2)


def hang_on_rank_1() -> None:
    if dist.get_rank() == 1:
        while True:
            pass

"""What the first rank works out, or fails at, is the same on every rank."""

import pytest
import torch.distributed as dist

from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.agreement import agreement
from megatron_mixcpt.testing import run_distributed


def check_rank() -> None:
    called = []
    with agreement() as ranks:
        assert ranks.from_first(lambda: called.append(1) or "found") == "found"
        assert len(called) == (1 if dist.get_rank() == 0 else 0)
        assert ranks.from_all(dist.get_rank) == [0, 1]
        with pytest.raises(DataError, match="no such file"):  # on the other rank, too, which did nothing
            ranks.from_first(_fail)
        with pytest.raises(DataError, match="no such file"):
            ranks.from_all(_fail if dist.get_rank() == 1 else int)


def _fail() -> None:
    raise DataError("no such file")


def test_ranks_agree() -> None:
    run_distributed(check_rank, 2)


def test_one_process_asks_nobody() -> None:
    with agreement() as ranks:
        assert (ranks.from_first(lambda: 3), ranks.from_all(lambda: 4)) == (3, [4])
        with pytest.raises(DataError, match="no such file"):
            ranks.from_first(_fail)

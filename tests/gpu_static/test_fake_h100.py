"""The means of these tests: the watch sees what it is there for, and a failure in the other process is shown."""

import pytest
import torch

from tests.gpu_static.fake_h100 import PROPERTIES, in_own_process, on_device
from tests.gpu_static.watch import Watch


def watches() -> tuple[Watch, Watch]:
    """Both in one process, which takes seconds to start."""
    return clean(), unclean()


def clean() -> Watch:
    """Nothing to find."""
    assert torch.cuda.get_device_properties(0).name == PROPERTIES.name
    with on_device() as watch:
        x = torch.ones(4, 8, device="cuda")
        watch.check(torch.where(x > 0, x, 0.0).cuda().t() @ x)
    return watch


def unclean() -> Watch:
    """One of each fault."""
    with on_device() as watch:
        x = torch.ones(4, device="cuda")
        x + torch.arange(4).to("cuda")
        with pytest.raises(Exception, match="data-dependent|dynamic|nonzero"):
            x[x > 0]
        with pytest.raises(Exception, match="data-dependent|item|scalar"):
            x.sum().item()
    return watch


def test_the_watch_finds_host_tensors_waits_and_copies_and_nothing_else() -> None:
    watch, wrong = in_own_process(watches)
    watch.check()
    assert watch.kernels["mm"] == 1 and "t" not in watch.kernels
    assert wrong.elsewhere == {"arange": 1} and wrong.host_copies == {"_to_copy": 1}
    assert wrong.waits == {"index": 1, "_local_scalar_dense": 1}
    with pytest.raises(AssertionError, match="made elsewhere.*arange.*waits.*index.*copied by the host"):
        wrong.check()


def test_a_failure_is_shown() -> None:
    with pytest.raises(AssertionError, match="invalid literal for int.*'x'"):
        in_own_process(int, "x")

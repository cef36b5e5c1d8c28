"""A pipeline over two hosts: one dies, comes back with the same command, and the run ends as if nothing had been."""

from pathlib import Path

import pytest

from tests.distributed.tiny_run import flags, make_world, train
from tests.multihost.hosts import Hosts, why_not
from tests.multihost.job import Job

REASON = why_not()
ITERATIONS = 8
LAYOUT = ["--pipeline-model-parallel-size", "2"]


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_host_dies_and_returns(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    expected = train(2, [*flags(world, iterations=ITERATIONS), *LAYOUT], tmp_path / "undisturbed")["loss"]
    (tmp_path / "job").mkdir()
    with Hosts(2) as hosts:
        job = Job(hosts, world, tmp_path / "job", LAYOUT, ranks_per_host=1, iterations=ITERATIONS)
        job.start_all()
        job.wait_for_iteration(3, timeout_s=150)
        assert hosts.kill(1) >= 2  # the agent and its rank
        job.start(1)
        assert job.wait(timeout_s=120) == [0, 0], job.ends_of_logs()
    losses = job.losses()
    # The same layout and order of sums, so the same numbers; TensorBoard keeps them as float32.
    assert [losses[step + 1] for step in range(ITERATIONS)] == pytest.approx(expected, rel=1e-6)

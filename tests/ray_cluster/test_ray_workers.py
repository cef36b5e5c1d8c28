"""Preprocessing on a Ray cluster of two nodes on this machine: the same bytes, and a node killed on the way."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_mixcpt.data.preprocessing.parts.encode import THIS_PROCESS, WhoWorks
from megatron_mixcpt.data.preprocessing.run import preprocess
from megatron_mixcpt.data.preprocessing.tool import build_parser, preprocess_settings
from megatron_mixcpt.data.reading import parts
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.ray_workers import RayWorkers
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        started.add_node(num_cpus=1)
    started.wait_for_nodes()
    yield started
    started.shutdown()


class Waiter:
    """Says where it runs; its first call of all waits until its node is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def work(self, number: int) -> tuple[int, str]:
        """The number, and the node."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        try:
            (self._folder / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(0.05)
            return number, node
        (self._folder / "told").write_text(node)
        time.sleep(3600)
        raise AssertionError

    def fail(self) -> None:
        """Raise what a user is to read."""
        raise DataError("a.jsonl:3: the text is empty")


def kill_told_node(cluster: Any, folder: Path) -> None:
    """Kill the node whose name is in ``folder/told``, as soon as it is there."""
    while not ((folder / "told").exists() and (folder / "told").read_text()):
        time.sleep(0.05)
    name = (folder / "told").read_text()
    [node] = [node for node in cluster.worker_nodes if node.node_id == name]
    cluster.remove_node(node, allow_graceful=False)


def test_the_part_of_a_killed_node_is_done_elsewhere(cluster: Any, tmp_path: Path) -> None:
    killer = threading.Thread(target=kill_told_node, args=(cluster, tmp_path))
    killer.start()
    with RayWorkers(cluster.address, {}, Waiter, tmp_path) as workers:
        results = [call.result() for call in [workers.submit("work", number) for number in range(40)]]
    killer.join()
    killed = (tmp_path / "told").read_text()
    assert [number for number, _ in results] == list(range(40))
    assert results[0][1] != killed and len({node for _, node in results} | {killed}) == 2


def test_errors_are_those_of_the_worker(cluster: Any, tmp_path: Path) -> None:
    with RayWorkers(cluster.address, {}, Waiter, tmp_path) as workers:
        with pytest.raises(DataError, match="^a.jsonl:3: the text is empty$"):
            workers.submit("fail").result()
        workers.check_paths([tmp_path])
        with pytest.raises(
            DataError, match=r"--ray: node \S+ \(.*\) does not see /nowhere/a.jsonl; every node needs it"
        ):
            workers.check_paths([Path("/nowhere/a.jsonl")])
        with pytest.raises(ConfigError, match=r"--ray: a.jsonl is relative"):
            workers.check_paths([Path("a.jsonl")])


def test_the_bytes_are_those_of_one_machine(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 20_000)
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    for name in ("law", "replay"):
        lines = [json.dumps({"text": f"{name}: {number} foxes " * (number % 50 + 1)}) for number in range(1000)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    flags = ["--cpt", f"law={tmp_path}/law.jsonl", "--cpt", f"replay={tmp_path}/replay.jsonl"]
    found = []
    for name, who in (("here", THIS_PROCESS), ("there", WhoWorks(ray=cluster.address))):
        arguments = [*flags, "--tokenizer", str(tokenizer), "--output", str(tmp_path / name)]
        preprocess(preprocess_settings(build_parser().parse_args(arguments)), tmp_path / name, who)
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert found[0] == found[1] and "cpt.law.bin" in found[0]

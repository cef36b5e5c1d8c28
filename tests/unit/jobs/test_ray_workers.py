"""What can be said without Ray: that it is missing, that nothing listens. The rest is in ``tests/ray_cluster``."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.ray_workers import RayWorkers, refuse_relative


def test_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = (
        r"--ray auto: Ray is not installed here; install it \(pip install 'megatron-mixcpt\[ray\]'\) on every node"
    )
    with pytest.raises(ConfigError, match=message):
        RayWorkers("auto", {}, dict)


def test_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 9 is that of a service which nobody runs."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    with pytest.raises(DataError, match=r"--ray 127.0.0.1:9: no Ray cluster there \(.*refused\); start one"):
        RayWorkers("127.0.0.1:9", {}, dict)


def test_relative_paths_are_refused() -> None:
    refuse_relative([Path("/data/a.jsonl")])
    with pytest.raises(ConfigError, match="--ray: a.jsonl is relative, which is another path on each node"):
        refuse_relative([Path("/data"), Path("a.jsonl")])

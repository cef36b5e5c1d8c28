"""Work done by the nodes of an existing Ray cluster, with the interface of ``workers.Workers``.

Ray decides where a call runs, and runs it again elsewhere where a node is lost. Each of its processes makes a worker of
its own, once. What calls leave in files must lie where all nodes see it; :meth:`RayWorkers.check_paths` asks them.
"""

import socket
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_mixcpt import __version__
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.workers import Pending

_RETRIES = 10
"""How often a call is run again because the node or the process that ran it was lost."""
_CHECK_SECONDS = 60
_CONNECT_SECONDS = 10
_made: dict[str, Any] = {}
"""The worker of this process, by the pool that it is of."""


class RayWorkers:
    """A context manager; leaving it cancels what has not ended, and leaves the cluster as it was.

    Args:
        address: of the cluster: ``auto`` for the one that this machine belongs to, ``HOST:PORT``, ``ray://HOST:PORT``.
        environment: variables to set in the processes.
        make_worker: called with ``arguments`` once in each process, before its first call. All must be picklable.

    Raises:
        ConfigError: Ray is not installed.
        DataError: there is no such cluster.
    """

    def __init__(
        self, address: str, environment: Mapping[str, str], make_worker: Callable[..., Any], *arguments: Any
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"--ray {address}: Ray is not installed here; install it (pip install 'megatron-mixcpt[ray]') on every "
                "node, or leave --ray out"
            ) from error
        self._ray = ray
        try:
            _knock(address)
            ray.init(
                address=address,
                runtime_env={"env_vars": dict(environment)},
                logging_level="ERROR",
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise DataError(
                f"--ray {address}: no Ray cluster there ({_first_line(error)}); start one with `ray start --head`, or "
                "give its address"
            ) from error
        self._name = uuid.uuid4().hex
        self._maker = ray.put((make_worker, arguments))
        self._call = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call)
        self._running: list[Any] = []

    def __enter__(self) -> "RayWorkers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            for reference in self._running:
                self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def submit(self, method: str, *arguments: Any) -> Pending:
        """Have a worker's ``method`` called. Its result raises DataError where no node could end it."""
        # Within a list Ray hands on the reference: what is behind it is fetched once in a process, not for each call.
        reference = self._call.remote(self._name, [self._maker], method, arguments)
        self._running.append(reference)
        return _Submitted(self._ray, reference)

    def check_paths(self, paths: Collection[Path]) -> None:
        """Raise ConfigError or DataError unless every node has this version of the package and sees all ``paths``.

        Of a file its size must be the same, too.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        refuse_relative(paths)
        sizes = {path: _size(path) for path in paths}
        asked = {}
        for node in self._ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ask = self._ray.remote(num_cpus=0, scheduling_strategy=here)(_differences)
                asked[node["NodeManagerAddress"]] = ask.remote(sizes, __version__)
        for address, reference in asked.items():
            try:
                found = self._ray.get(reference, timeout=_CHECK_SECONDS)
            except self._ray.exceptions.RayError as error:
                found = f"cannot run this package ({_first_line(error)}); install it there as it is here"
            if found:
                raise DataError(f"--ray: node {address} {found}")


def refuse_relative(paths: Iterable[Path]) -> None:
    """Raise ConfigError where a path is relative."""
    for path in paths:
        if not path.is_absolute():
            raise ConfigError(f"--ray: {path} is relative, which is another path on each node; give it in full")


def _knock(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()


class _Submitted:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference

    def result(self) -> Any:
        try:
            result, error = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as lost:
            raise DataError(
                f"--ray: a part could not be finished on any node ({_first_line(lost)}); look at the cluster, then run "
                "again to continue"
            ) from lost
        if error is not None:
            raise error
        return result


def _call(name: str, maker: list[Any], method: str, arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """In a process of Ray: what a worker's method returns, or the error that it raises.

    The error is a value, because Ray would wrap it, with its traceback as message, and run some calls again.
    """
    import ray

    try:
        if name not in _made:
            _made.clear()
            make_worker, of_worker = ray.get(maker[0])
            _made[name] = make_worker(*of_worker)
        return getattr(_made[name], method)(*arguments), None
    except Exception as error:
        return None, error


def _differences(sizes: dict[Path, int | None], version: str) -> str:
    """On a node: what is not as on the one that asks; empty if nothing."""
    if version != __version__:
        return f"has version {__version__} of this package, not {version}; install the same on every node"
    for path, size in sizes.items():
        if not path.exists():
            return f"({socket.gethostname()}) does not see {path}; every node needs it, under this name"
        if _size(path) != size:
            return f"({socket.gethostname()}) sees another {path}; every node needs the same, under this name"
    return ""


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""Renders a stranger's template in a separate process, within bounds of time and memory.

A sandbox keeps a template from the machine's files, not from looping for days or from doubling a string forty times.
So templates run in a small helper process (``renderer_process.py``) that limits itself; the process that asks for a
rendering, its other threads and its signals are untouched. The helper starts with the first rendering, renders many
conversations with all their beginnings in one round trip, and ends when this process ends, even by SIGKILL: it reads
the end of its input. A helper that exceeded its bounds, or was killed, is replaced: one conversation fails, no other.
"""

import atexit
import io
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

PROGRAM = Path(__file__).with_name("renderer_process.py")
ENVIRONMENT = {"TRANSFORMERS_VERBOSITY": "error", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


MAX_CHARACTERS = 1 << 20
"""A template may write so many characters of a conversation, and twenty times as many as the request has."""
BYTES_AT_ONCE = 4 << 20
"""Requests of one round trip, which the helper holds in memory."""


class RenderingError(Exception):
    """A template could not be rendered; ``line`` is where in the template, if known."""

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


class Bounds(NamedTuple):
    """What rendering one conversation may take. Templates take milliseconds and kilobytes."""

    cpu_seconds: float = 10.0
    extra_bytes: int = 2 << 30
    """Of address space, beyond what the helper takes when it starts."""


class Asked(NamedTuple):
    """A conversation, and what to render of it."""

    messages: Sequence[Mapping[str, Any]]
    """As the template sees them; must be JSON."""
    tools: Sequence[Any] | None
    """Definitions of tools, as JSON."""
    beginnings: Sequence[tuple[int, bool]]
    """Each a rendering: of the first so many messages, with the generation prompt or without."""


class Renderer:
    """Renders in a helper process. Any thread may use it; a forked process gets another helper."""

    def __init__(self, bounds: Bounds | None = None):
        self._bounds = bounds or Bounds()
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        _renderers.add(self)

    def render(
        self, template: str, conversations: Sequence[Asked], variables: Mapping[str, Any], now: str
    ) -> list[list[str] | RenderingError]:
        """The texts that each conversation asks for, or why there are none.

        Args:
            template: Jinja.
            conversations: what to render. Each has its own bounds.
            variables: more that the template can see; must be JSON.
            now: the date and time (ISO) that ``strftime_now`` writes.
        """
        common = _json({"template": template, "variables": variables, "now": now, "max_characters": MAX_CHARACTERS})
        requests = [_json(conversation) for conversation in conversations]
        found: list[list[str] | RenderingError] = []
        with self._lock:
            while len(found) < len(requests):
                found += self._exchange(common, requests[len(found) :])
        return found

    def close(self) -> None:
        """End the helper; the next rendering starts another."""
        if self._helper is not None:
            self._helper.end()
            self._helper = None

    @property
    def helper_pid(self) -> int | None:
        """The helper's process id, if one is running."""
        return None if self._helper is None else self._helper.process.pid

    def _exchange(self, common: bytes, requests: Sequence[bytes]) -> list[list[str] | RenderingError]:
        """What the helper replies: to some of the requests in one round trip, at least to the first."""
        replies, status = self._ask(common, requests[: _number_at_once(requests)])
        if not replies and status != -signal.SIGXCPU:
            # A helper that ended after it had answered, or was killed by someone, is not this conversation's fault.
            replies, status = self._ask(common, requests[:1])
        if replies:
            return replies
        if status == -signal.SIGXCPU:
            return [RenderingError("TookTooLongError: it takes too long")]
        return [RenderingError("the process that renders it was killed, perhaps for want of memory")]

    def _ask(self, common: bytes, requests: Sequence[bytes]) -> tuple[list[list[str] | RenderingError], int | None]:
        """Replies up to the helper's end, and its exit status where it ended before the last."""
        try:
            if self._helper is None:
                self._helper = _Helper(self._bounds)
            replies = self._helper.ask(
                b'{"common": %b, "conversations": [%b]}' % (common, b",".join(requests)), len(requests)
            )
        except BaseException:  # an interrupt between request and reply
            self.close()
            raise
        status = None
        if len(replies) < len(requests):
            status = self._helper.process.wait()
            self.close()
        return [_read(reply) for reply in replies], status

    def _forget_after_fork(self) -> None:
        """Let go of the parent's helper, in a forked process. The lock may have been held by another thread."""
        self._lock = threading.Lock()
        if self._helper is not None:
            self._helper.forget()
            self._helper = None


class _Helper:
    """A running helper process."""

    def __init__(self, bounds: Bounds):
        command = [sys.executable, "-P", str(PROGRAM), str(bounds.cpu_seconds), str(bounds.extra_bytes)]
        # Unbuffered, so that a forked process has nothing of a request to write when it closes its copy.
        self.process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | ENVIRONMENT
        )
        self._requests = cast(io.RawIOBase, self.process.stdin)
        self._replies = io.BufferedReader(cast(io.RawIOBase, self.process.stdout))
        if self._replies.readline() != b"ready\n":
            raise RuntimeError(f"{PROGRAM.name} did not start (exit status {self.process.wait()})")

    def ask(self, request: bytes, num_replies: int) -> list[bytes]:
        """The replies to a request; fewer where the helper ends on the way."""
        left = memoryview(request + b"\n")
        try:
            while left:
                left = left[self._requests.write(left) or 0 :]
        except BrokenPipeError:
            return []
        replies: list[bytes] = []
        while len(replies) < num_replies:
            reply = self._replies.readline()
            if not reply.endswith(b"\n"):
                break
            replies.append(reply)
        return replies

    def end(self) -> None:
        """Kill the helper and wait for its end."""
        self.process.kill()
        self.process.wait()
        self.forget()

    def forget(self) -> None:
        """Close this process's ends of the pipes."""
        self._requests.close()
        self._replies.close()
        if self.process.returncode is None:  # in a forked process, whose child it is not: nothing to wait for
            self.process.returncode = 0


def _json(value: Any) -> bytes:
    return json.dumps(value, default=str).encode("ascii")


def _number_at_once(requests: Sequence[bytes]) -> int:
    """How many of the requests make one round trip."""
    sizes = accumulate(map(len, requests))
    return max(1, sum(1 for size in sizes if size <= BYTES_AT_ONCE))


def _read(reply: bytes) -> list[str] | RenderingError:
    found = json.loads(reply)
    return found["texts"] if "texts" in found else RenderingError(found["error"], found["line"])


_renderers: "weakref.WeakSet[Renderer]" = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for renderer in _renderers:
        renderer._forget_after_fork()


@atexit.register
def _close_all() -> None:
    for renderer in _renderers:
        renderer.close()


os.register_at_fork(after_in_child=_forget_all_after_fork)

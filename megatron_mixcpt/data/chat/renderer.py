"""Renders a stranger's template in a separate process, within bounds of time and memory.

A sandbox keeps a template from the machine's files, not from looping for days or from doubling a string forty times.
So templates run in a small helper process (``renderer_process.py``) that limits itself; the process that asks for a
rendering, its other threads and its signals are untouched. The helper starts with the first rendering, renders a
conversation with all its beginnings in one round trip, and ends when this process ends, even by SIGKILL: it reads the
end of its input. A helper that exceeded its bounds, or was killed, is replaced.
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
from pathlib import Path
from typing import Any, NamedTuple, cast

PROGRAM = Path(__file__).with_name("renderer_process.py")
ENVIRONMENT = {"TRANSFORMERS_VERBOSITY": "error", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


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


class Wanted(NamedTuple):
    """One rendering of a conversation."""

    num_messages: int
    """Render its first so many messages."""
    generation_prompt: bool
    max_characters: int
    """A longer text is refused."""


class Renderer:
    """Renders in a helper process. Any thread may use it; a forked process gets another helper."""

    def __init__(self, bounds: Bounds | None = None):
        self._bounds = bounds or Bounds()
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        _renderers.add(self)

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, str]],
        wanted: Sequence[Wanted],
        variables: Mapping[str, Any],
    ) -> list[str]:
        """The texts that ``wanted`` asks for of one conversation.

        Args:
            template: Jinja.
            messages: each with ``role`` and ``content``.
            wanted: which beginnings of the conversation to render.
            variables: more that the template can see; must be JSON.

        Raises RenderingError where the template fails or exceeds the bounds.
        """
        request = json.dumps(
            {"template": template, "messages": messages, "wanted": wanted, "variables": variables}, default=str
        ).encode("ascii")
        with self._lock:
            # A helper that ended after it had answered, or was killed by someone, is not this conversation's fault.
            reply = self._exchange(request) or self._exchange(request)
        if reply is None:
            raise RenderingError("the process that renders it was killed, perhaps for want of memory")
        if "texts" in reply:
            return reply["texts"]
        raise RenderingError(reply["error"], reply["line"])

    def close(self) -> None:
        """End the helper; the next rendering starts another."""
        if self._helper is not None:
            self._helper.end()
            self._helper = None

    @property
    def helper_pid(self) -> int | None:
        """The helper's process id, if one is running."""
        return None if self._helper is None else self._helper.process.pid

    def _exchange(self, request: bytes) -> dict[str, Any] | None:
        """The helper's reply, or None where it is gone. Raises RenderingError where it took too much time."""
        try:
            if self._helper is None:
                self._helper = _Helper(self._bounds)
            reply = self._helper.ask(request)
        except BaseException:  # an interrupt between request and reply
            self.close()
            raise
        if reply:
            return json.loads(reply)
        status = self._helper.process.wait()
        self.close()
        if status == -signal.SIGXCPU:
            raise RenderingError("TookTooLongError: it takes too long")
        return None

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

    def ask(self, request: bytes) -> bytes:
        """The reply to a request; empty where the helper is gone."""
        left = memoryview(request + b"\n")
        try:
            while left:
                left = left[self._requests.write(left) or 0 :]
        except BrokenPipeError:
            return b""
        reply = self._replies.readline()
        return reply if reply.endswith(b"\n") else b""

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


_renderers: "weakref.WeakSet[Renderer]" = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for renderer in _renderers:
        renderer._forget_after_fork()


@atexit.register
def _close_all() -> None:
    for renderer in _renderers:
        renderer.close()


os.register_at_fork(after_in_child=_forget_all_after_fork)

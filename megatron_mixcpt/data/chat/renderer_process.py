"""The helper process of ``renderer.py``: reads requests, renders, replies.

A request is a line of JSON with many conversations; each of them is replied to with a line of JSON.

Started as ``renderer_process.py CPU_SECONDS EXTRA_BYTES``. Rendering is transformers' own, in its sandbox; neither
torch nor a tokenizer is loaded. Three limits hold, all of this process alone: address space (MemoryError), processor
time for a conversation (an exception between two of Python's instructions), and twice that time, where the kernel ends
a process that hangs inside one instruction. A process that met a limit replies and ends, for what it holds by then is
anyone's guess.
"""

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

MAX_ERROR_CHARACTERS = 2000


class TookTooLongError(RuntimeError):
    """A conversation used up its processor time."""


def main(cpu_seconds: float, extra_bytes: int) -> None:
    """Serve requests until the input ends, or a limit is met."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGVTALRM, _interrupt)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no reply
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = Clock  # what transformers' strftime_now asks
    _limit(resource.RLIMIT_AS, _address_space_bytes() + extra_bytes)
    replies.write(b"ready\n")
    replies.flush()
    for line in sys.stdin.buffer:
        if _serve(line, chat_template_utils.render_jinja_template, cpu_seconds, replies):
            return


class Clock(datetime):
    """Stands still at the date and time that a request names."""

    fixed = datetime.min

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """The time of the request."""
        return cls.fixed


def _serve(line: bytes, render: Callable[..., Any], cpu_seconds: float, replies: BinaryIO) -> bool:
    """Reply to each conversation of a request in turn; returns whether this process should end then."""
    request = json.loads(line)
    common = request["common"]
    Clock.fixed = datetime.fromisoformat(common["now"])
    for conversation in request["conversations"]:
        reply, is_last = _reply(common, conversation, render, cpu_seconds)
        replies.write(json.dumps(reply).encode("ascii") + b"\n")
        replies.flush()  # should the next one's end be this process's, too
        if is_last:
            return True
    return False


def _reply(
    common: dict[str, Any], conversation: list[Any], render: Callable[..., Any], cpu_seconds: float
) -> tuple[dict[str, Any], bool]:
    """What to answer of a conversation, and whether this process should end then."""
    try:
        try:
            _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + 2 * cpu_seconds) + 1)
            # Again and again, because an exception may be raised where Python ignores it (in a finalizer).
            signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds, 0.1)
            return {"texts": _texts(render, common, *conversation)}, False
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except Exception as error:  # Python's own, out of what the template computes, or the limits
        from jinja2 import TemplateError

        detail = str(error)[:MAX_ERROR_CHARACTERS]
        if not isinstance(error, TemplateError):
            detail = f"{type(error).__name__}: {' '.join(detail.split())}" if detail else type(error).__name__
        is_last = isinstance(error, MemoryError | TookTooLongError)
        return {"error": detail, "line": getattr(error, "lineno", None)}, is_last


def _texts(
    render: Callable[..., Any],
    common: dict[str, Any],
    messages: list[Any],
    tools: list[Any] | None,
    beginnings: list[tuple[int, bool]],
) -> list[str]:
    """The renderings of a conversation. Raises jinja2.TemplateError, or what Python raises for the template."""
    from jinja2 import TemplateError

    texts = []
    most = common["max_characters"] + 20 * _num_characters([messages, tools])
    for num_messages, generation_prompt in beginnings:
        (text,), _ = render(
            conversations=[messages[:num_messages]],
            tools=tools,
            chat_template=common["template"],
            add_generation_prompt=generation_prompt,
            **common["variables"],
        )
        if len(text) > most:
            raise TemplateError(f"it writes {len(text):,} characters")
        texts.append(text)
    return texts


def _num_characters(value: Any) -> int:
    """Characters of all strings in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_characters, value.values()))
    return sum(map(_num_characters, value)) if isinstance(value, list) else 0


def _limit(what: int, value: int) -> None:
    """Lower a soft limit to ``value``, or raise it as far as the hard limit allows."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise TookTooLongError("it takes too long")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

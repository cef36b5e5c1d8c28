"""The calls that only a CUDA device answers, and what stands for them where the kit is exercised on a CPU.

Times are CUDA events around single calls, after a warm-up; the median counts. Before each, the device is kept busy for
some milliseconds with emptying its second-level cache, so that the host is ahead of it, as it is in training: what a
launch takes the host is hidden up to there. On the CPU platform the events are the host's clock, which means nothing
but that the code ran.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

on_cpu = False
"""Set by ``run_check.py`` and ``inner.py``: the CPU platform stands for the device."""
DEVICE = "cuda"


def placement() -> str:
    """The device by the name that torch itself takes, where the emulation does not reach."""
    return "cpu" if on_cpu else DEVICE


_FLUSH_BYTES, _FLUSHES = 256 * 2**20, 40
"""More than any second-level cache (50 MB on an H100), as often as takes 3 ms there."""


def milliseconds(call: Callable[[], object], repeats: int = 20, warm_up: int = 3) -> float:
    """The median time of a call on the device, its inputs out of the cache."""
    for _ in range(warm_up):
        call()
    size, number = (2**10, 1) if on_cpu else (_FLUSH_BYTES, _FLUSHES)
    flushed = torch.empty(size, dtype=torch.int8, device=DEVICE)
    pairs = []
    for _ in range(repeats):
        for _ in range(number):
            flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def in_turn(calls: dict[str, Callable[[], object]], repeats: int = 15, warm_up: int = 2) -> dict[str, float]:
    """The median time of each of several calls, taken in turn: what slows the machine for a moment slows all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + warm_up):
        for name, call in calls.items():
            taken = milliseconds(call, repeats=1, warm_up=0)
            if repeat >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


@contextlib.contextmanager
def waits_are_errors() -> Iterator[None]:
    """Within it, an operation that makes the host wait for the device raises RuntimeError."""
    if on_cpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def waits_allowed() -> Iterator[None]:
    """Within :func:`waits_are_errors`, for what waits by design."""
    if on_cpu:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def poison(*like: torch.Tensor) -> None:
    """Fill memory of these sizes with NaN and free it: the allocator's next answer is likely to be there."""
    blocks = [torch.full_like(tensor, float("nan")) for tensor in like]
    del blocks


def reset_peak() -> None:
    """Forget the most memory that was allocated so far."""
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """The most that torch's allocator had given out since :func:`reset_peak`; on a CPU the process's peak."""
    return torch.cuda.max_memory_allocated()


@dataclass(frozen=True)
class Profile:
    """What ran during a call."""

    operations: dict[str, int]
    """Of torch, by name, with how often they ran."""
    kernels: dict[str, float]
    """Milliseconds on the device, by kernel."""
    span_ms: float
    """From the first kernel's start to the last one's end."""
    busy_ms: float
    """Of it, with at least one kernel running."""
    host_waits: dict[str, int]
    """Calls of the CUDA runtime that wait for the device, by name."""

    @property
    def idle(self) -> float:
        """The share of the span without a kernel."""
        return 1 - self.busy_ms / self.span_ms if self.span_ms else 0.0


_WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def profiled(call: Callable[[], object]) -> Profile:
    """Run a call under torch's profiler, to the end of its work on the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not on_cpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as recorded:
        call()
        torch.cuda.synchronize()
    return read_profile(recorded)


def read_profile(recorded: torch.profiler.profile) -> Profile:
    """What a finished profile holds. The wait at its end, which whoever records adds, is not counted."""
    device_types = torch.autograd.DeviceType
    operations: dict[str, int] = {}
    kernels: dict[str, float] = {}
    waits: dict[str, int] = {}
    intervals = []
    for event in recorded.events():
        on_device = event.device_type == (device_types.CPU if on_cpu else device_types.CUDA)
        if event.device_type == device_types.CPU:
            operations[event.name] = operations.get(event.name, 0) + 1
            if event.name in _WAITS:
                waits[event.name] = waits.get(event.name, 0) + 1
        if on_device and not event.name.startswith(("ProfilerStep", "## ")) and not event.is_user_annotation:
            taken = event.time_range.end - event.time_range.start
            kernels[event.name] = kernels.get(event.name, 0.0) + taken / 1e3
            intervals.append((event.time_range.start, event.time_range.end))
    if waits.get("cudaDeviceSynchronize"):
        waits["cudaDeviceSynchronize"] -= 1
    span, busy = span_and_busy(intervals)
    return Profile(operations, kernels, span / 1e3, busy / 1e3, {name: count for name, count in waits.items() if count})


def span_and_busy(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """From first start to last end, and the length of the union of the intervals."""
    if not intervals:
        return 0.0, 0.0
    busy, reached = 0.0, min(start for start, _ in intervals)
    first = reached
    for start, end in sorted(intervals):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return reached - first, busy

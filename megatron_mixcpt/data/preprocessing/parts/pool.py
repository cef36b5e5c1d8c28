"""Worker processes that end with the process that started them, however it ends."""

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from megatron_mixcpt.data.preprocessing.parts.files import PartResult
from megatron_mixcpt.data.preprocessing.parts.plan import Part
from megatron_mixcpt.data.preprocessing.parts.worker import PartWorker
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source

_worker: PartWorker | None = None


def worker_pool(
    num_workers: int, settings: PreprocessSettings, sources: list[Source], folder: Path, use_fast: bool
) -> ProcessPoolExecutor:
    """A pool whose processes hold a :class:`PartWorker` each, for :func:`run_part`.

    They are forked, before any encoder has started threads, so that the modules are loaded once.
    """
    life_line = os.pipe()
    arguments = (life_line, settings, sources, folder, use_fast)
    return ProcessPoolExecutor(num_workers, get_context("fork"), _start_worker, arguments)


def run_part(part: Part) -> PartResult:
    """Process a part in a worker process. Raises what :meth:`PartWorker.run` raises."""
    assert _worker is not None
    return _worker.run(part)


def compare_first(part: Part, num_samples: int) -> int:
    """Compare the first samples of a part in a worker process. Raises what :meth:`PartWorker.compare_first` raises."""
    assert _worker is not None
    return _worker.compare_first(part, num_samples)


def _start_worker(
    life_line: tuple[int, int], settings: PreprocessSettings, sources: list[Source], folder: Path, use_fast: bool
) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    read_end, write_end = life_line
    os.close(write_end)
    threading.Thread(target=_end_with_parent, args=(read_end,), daemon=True).start()
    _worker = PartWorker(settings, sources, folder, use_fast)


def _end_with_parent(read_end: int) -> None:
    """Wait until no process holds the pipe's other end, which is when the parent is gone, then stop at once."""
    os.read(read_end, 1)
    os._exit(1)

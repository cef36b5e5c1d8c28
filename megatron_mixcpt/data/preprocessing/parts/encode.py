"""All parts of a run are finished, by this process or by workers, and their sources' digests taken meanwhile."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt.data.preprocessing.parts.files import PartResult
from megatron_mixcpt.data.preprocessing.parts.plan import Part
from megatron_mixcpt.data.preprocessing.parts.pool import compare_first, run_part, worker_pool
from megatron_mixcpt.data.preprocessing.parts.worker import NUM_COMPARED_FIRST, PartWorker
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.digests import file_digest
from megatron_mixcpt.jobs.progress import Progress


@dataclass(frozen=True)
class EncodedParts:
    """What is known when all parts are finished, beside what they say of themselves."""

    digests: list[str]
    """sha256 of each source."""
    num_compared_later: int
    """Texts compared beyond those that the parts count."""


class _FirstSamples:
    """Finds which of a kind's first samples lie beyond its first part, where they were not all compared."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}

    def left_in(self, part: Part, result: PartResult) -> int:
        """How many samples of this part, the parts given in order, are still to be compared."""
        left = self._left.get(part.kind, NUM_COMPARED_FIRST)
        self._left[part.kind] = max(0, left - result.num_samples)
        return 0 if part.is_first else left


def encode_parts(
    settings: PreprocessSettings, sources: list[Source], parts: list[Part], work: Path, num_workers: int, use_fast: bool
) -> EncodedParts:
    """Finish every part in folder ``work``.

    Errors come in the order of the parts, so that the first bad record is the one named. Raises EncoderMismatch.
    """
    with Progress(sum(part.weight for part in parts), "encoding") as progress:
        if num_workers == 1 or len(parts) == 1:
            return _encode_here(PartWorker(settings, sources, work, use_fast), sources, parts, progress)
        with worker_pool(min(num_workers, len(parts)), settings, sources, work, use_fast) as pool:
            try:
                return _encode_in_pool(pool, sources, parts, progress)
            except BrokenProcessPool as error:
                raise DataError("a worker was killed, perhaps for want of memory; try fewer --workers") from error
            finally:
                pool.shutdown(cancel_futures=True)


def _encode_here(worker: PartWorker, sources: list[Source], parts: list[Part], progress: Progress) -> EncodedParts:
    first, num_compared = _FirstSamples(), 0
    for part in parts:
        if num_left := first.left_in(part, worker.run(part)):
            num_compared += worker.compare_first(part, num_left)
        progress.add(part.weight)
    return EncodedParts([file_digest(source.path) for source in sources], num_compared)


def _encode_in_pool(
    pool: ProcessPoolExecutor, sources: list[Source], parts: list[Part], progress: Progress
) -> EncodedParts:
    first, comparing = _FirstSamples(), []
    running = [(part, pool.submit(run_part, part)) for part in parts]
    digests = pool.map(file_digest, [source.path for source in sources], chunksize=64)
    for part, future in running:
        if num_left := first.left_in(part, future.result()):
            comparing.append(pool.submit(compare_first, part, num_left))
        progress.add(part.weight)
    return EncodedParts(list(digests), sum(future.result() for future in comparing))

"""All parts of a run are finished, by this process or by workers, and their sources' digests taken meanwhile."""

from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt.data.preprocessing.parts.files import PartResult
from megatron_mixcpt.data.preprocessing.parts.worker import NUM_COMPARED_FIRST, PartWorker
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.parts import Part
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.tokens.encoder import ONE_THREAD
from megatron_mixcpt.jobs.progress import Progress
from megatron_mixcpt.jobs.ray_workers import RayWorkers
from megatron_mixcpt.jobs.work_folder import PLAN_NAME
from megatron_mixcpt.jobs.workers import Workers

FILES_PER_CALL = 64


@dataclass(frozen=True)
class EncodedParts:
    """What is known when all parts are finished, beside what they say of themselves."""

    digests: list[str]
    """sha256 of each source."""
    num_compared_later: int
    """Texts compared beyond those that the parts count."""


class _FirstSamples:
    """Finds which of a dataset's first samples lie beyond its first part, where they were not all compared."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}

    def left_in(self, part: Part, result: PartResult) -> int:
        """How many samples of this part, the parts given in order, are still to be compared."""
        left = self._left.get(part.dataset, NUM_COMPARED_FIRST)
        self._left[part.dataset] = max(0, left - result.num_samples)
        return 0 if part.is_first else left


@dataclass(frozen=True)
class WhoWorks:
    """Which processes do the work; nothing that is written depends on it."""

    num_workers: int = 1
    """Processes of this machine."""
    ray: str = ""
    """Address of the Ray cluster that works instead; empty: none."""


THIS_PROCESS = WhoWorks()


def encode_parts(
    settings: PreprocessSettings, sources: list[Source], parts: list[Part], work: Path, who: WhoWorks, use_fast: bool
) -> EncodedParts:
    """Finish every part in folder ``work``.

    Errors come in the order of the parts, so that the first bad record is the one named. Raises EncoderMismatch.
    """
    arguments = (PartWorker, settings, sources, work, use_fast)
    with Progress(sum(part.weight for part in parts), "encoding") as progress:
        if not who.ray:
            with Workers(min(who.num_workers, len(parts)), *arguments) as workers:
                return _encode(workers, sources, parts, progress)
        with RayWorkers(who.ray, ONE_THREAD, *arguments) as nodes:
            test_sets = find_sources("decontaminate", list(settings.decontaminate))
            nodes.check_paths([work / PLAN_NAME, *(source.path for source in [*sources, *test_sets])])
            return _encode(nodes, sources, parts, progress)


def _encode(
    workers: Workers | RayWorkers, sources: list[Source], parts: list[Part], progress: Progress
) -> EncodedParts:
    first, comparing = _FirstSamples(), []
    running = [(part, workers.submit("run", part)) for part in parts]
    starts = range(0, len(sources), FILES_PER_CALL)
    digests = [workers.submit("digests", start, start + FILES_PER_CALL) for start in starts]
    for part, call in running:
        if num_left := first.left_in(part, call.result()):
            comparing.append(workers.submit("compare_first", part, num_left))
        progress.add(part.weight)
    num_compared = sum(call.result() for call in comparing)
    return EncodedParts([digest for call in digests for digest in call.result()], num_compared)

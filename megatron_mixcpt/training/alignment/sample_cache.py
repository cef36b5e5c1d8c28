"""Samples are encoded once and kept in a folder, ``--data-cache-path``, by default ``SAVE/cache``.

The folder of the samples is called after the digest of all that decides them (``sample_recipe.py``), so that it is
found again by every start of every run that wants the same samples, and by no other. One process encodes, in parallel;
the others wait, and all ranks of all hosts map the files into memory. A host that does not see the folder of the first
rank, because the hosts do not share the file system, encodes for itself. Without either flag the folder is a temporary
one, removed as soon as all ranks have mapped it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from megatron_mixcpt.data.datasets.encoded_samples import EncodedPart, EncodedSamples, SampleWriter
from megatron_mixcpt.data.reading.parts import plan_parts
from megatron_mixcpt.data.reading.reading_settings import num_bad
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.agreement import Agreement
from megatron_mixcpt.jobs.progress import Progress
from megatron_mixcpt.jobs.whole_outputs import make_folder, whole_folder
from megatron_mixcpt.jobs.workers import Pending, Workers
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.alignment.sample_encoder import SampleEncoder, SegmentCounts
from megatron_mixcpt.training.alignment.sample_recipe import SampleRecipe

# Of input: seconds of work, so that all processes are busy to the end and progress moves.
_PART_BYTES = 1 << 20
# A network file system shows a new folder to other hosts only after some seconds.
_SEEN_WITHIN_S = 10.0


def cached_samples(
    recipe: SampleRecipe, cache: Path | None, num_workers: int, ranks: Agreement
) -> tuple[EncodedSamples, Path | None]:
    """The samples of ``recipe``, encoded unless they are in ``cache``. Every rank must call.

    Args:
        recipe: what the samples are made from, the same on all ranks.
        cache: folder of caches; None: a temporary one.
        num_workers: processes that encode.
        ranks: all ranks of the job.

    Returns:
        The samples, and the folder that they lie in; None where it has been removed.

    Raises:
        DataError: a record cannot be used, or the folder cannot be written.
    """
    root = cache or ranks.from_first(lambda: Path(tempfile.mkdtemp(prefix="mixcpt-samples-")))
    folder = root / recipe.name
    try:
        ranks.from_first(lambda: _make(recipe, folder, num_workers))
        is_leader = int(os.environ.get("LOCAL_RANK", "0")) == 0
        ranks.from_all(lambda: _make(recipe, folder, num_workers) if is_leader and not _is_seen(folder) else None)
        samples = EncodedSamples(folder)
        ranks.from_all(lambda: None)  # all have mapped it
    finally:
        if cache is None:
            shutil.rmtree(root, ignore_errors=True)
    _check_rejects(recipe, samples)
    return samples, folder if cache else None


def _is_seen(folder: Path) -> bool:
    """Whether this host sees the samples that the first rank has written, or will in some seconds."""
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while not (folder / "summary.json").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(folder.parent)  # lets a network file system look again
    return True


def _make(recipe: SampleRecipe, folder: Path, num_workers: int) -> None:
    """Encode the samples into ``folder``, unless they are there."""
    if folder.exists():
        return
    try:
        with _alone(folder.parent):
            if not folder.exists():  # another job may have encoded the same samples meanwhile
                with whole_folder(folder) as aside:
                    _encode(recipe, aside, num_workers)
    except OSError as error:
        raise DataError(
            f"{folder}: the encoded samples could not be written ({error.strerror}); free some space, or name another "
            "folder with --data-cache-path"
        ) from error


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One job at a time writes into a cache, where the file system has locks."""
    make_folder(root)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that encodes into {root} ...")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _encode(recipe: SampleRecipe, folder: Path, num_workers: int) -> None:
    parts = plan_parts(list(recipe.sources), _PART_BYTES)
    num_workers = max(1, min(num_workers, len(parts)))
    began_s = time.monotonic()
    say(f"encoding samples of {len(recipe.sources)} files, {num_workers} processes ...")
    places = _Places(recipe)
    with (
        SampleWriter(folder) as writer,
        Workers(num_workers, SampleEncoder, recipe) as workers,
        Progress(sum(part.weight for part in parts), "encode") as progress,
    ):
        left, running = iter(parts), deque[Pending]()
        for part in parts:
            while len(running) < 2 * num_workers and (following := next(left, None)):
                running.append(workers.submit("encode", following))
            encoded, segments = running.popleft().result()
            places.locate(encoded, segments)
            writer.add(encoded)
            progress.add(part.weight)
        writer.finish(recipe.documents_per_sample, {"num_records": places.num_records} | recipe.described())
    say(f"samples encoded: {writer.num_samples:,} in {time.monotonic() - began_s:.1f} s")


class _Places:
    """Counts lines through the segments of each file, in order, so that a reject's line is that of the file."""

    def __init__(self, recipe: SampleRecipe) -> None:
        self._recipe = recipe
        self._lines = [0] * len(recipe.sources)
        self.num_records = 0

    def locate(self, part: EncodedPart, segments: list[SegmentCounts]) -> None:
        """Give the rejects of ``part`` their file and line, in place."""
        rejects = iter(part.rejects)
        for segment in segments:
            for _, reject in zip(range(segment.num_rejects), rejects, strict=False):
                reject["source"] = str(self._recipe.sources[segment.source].path)
                reject["line"] += self._lines[segment.source]
            self._lines[segment.source] += segment.lines
            self.num_records += segment.records


def _check_rejects(recipe: SampleRecipe, samples: EncodedSamples) -> None:
    """What ``--on-bad-record`` and ``--max-rejects`` say, also of samples that a run with other values encoded."""
    rejects, flag = samples.summary["rejects"], f"--{recipe.kind}"
    bad = num_bad(rejects)
    if bad and recipe.reading.on_bad_record == "error":
        raise DataError(
            f"{flag}: {bad} records cannot be used, see {samples.folder / 'rejects.jsonl'}; fix them, or continue "
            "without such records with --on-bad-record skip"
        )
    recipe.reading.check_rejects(flag, samples.summary["made_from"]["num_records"], rejects)

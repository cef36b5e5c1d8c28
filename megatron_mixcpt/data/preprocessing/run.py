"""From input files to a finished mixture: plan, encode part by part, merge, describe.

Everything is written into ``OUTPUT/.work`` and renamed into place at the end, mixture.json last. A run that was
killed goes on from its finished parts when started again with the same arguments; the result is the same to the byte.
"""

import gzip
import io
import shutil
from pathlib import Path

from megatron_mixcpt import __version__
from megatron_mixcpt.data.dataset_names import kind_of, of_kind, source_of
from megatron_mixcpt.data.mixture.manifest import MANIFEST_NAME, DatasetSummary, MixtureManifest, TokenizerIdentity
from megatron_mixcpt.data.preprocessing.inputs import find_inputs
from megatron_mixcpt.data.preprocessing.merge import merge_dataset, what_stays
from megatron_mixcpt.data.preprocessing.parts.encode import THIS_PROCESS, WhoWorks, encode_parts
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.preprocessing.source_counts import FinishedPart, SourceCounts, open_part
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.parts import Part, plan_parts
from megatron_mixcpt.data.reading.reading_settings import listed_counts
from megatron_mixcpt.data.tokens.encoder import EncoderMismatch, one_encoder_thread
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.digests import file_digest
from megatron_mixcpt.jobs.ray_workers import refuse_relative
from megatron_mixcpt.jobs.whole_outputs import flush, make_folder, publish
from megatron_mixcpt.jobs.work_folder import lock, refuse_other, start_or_resume

WORK_NAME = ".work"
REJECTS_NAME = "rejects.jsonl.gz"


def preprocess(settings: PreprocessSettings, output: Path, who: WhoWorks = THIS_PROCESS) -> MixtureManifest:
    """Write the mixture that ``settings`` describe into folder ``output`` and return its manifest.

    A folder that holds it already is left as it is. Raises DataError on bad input, on a full disk, and where the
    folder holds another mixture or another run is writing it; no file has a final name before all of them are complete.
    """
    inputs = find_inputs(settings)
    sources = inputs.sources
    if who.ray:
        refuse_relative([output, *(source.path for source in sources)])
    for line in inputs.left_out:
        print(line, flush=True)
    try:
        make_folder(output)
        with lock(output), one_encoder_thread():
            if (output / MANIFEST_NAME).exists():
                return _finished_before(settings, sources, output)
            return _run(settings, sources, output, who)
    except OSError as error:
        what = error.strerror or error
        raise DataError(
            f"--output {output}: cannot be written ({what}); fix that, then run again to continue"
        ) from error


def _run(settings: PreprocessSettings, sources: list[Source], output: Path, who: WhoWorks) -> MixtureManifest:
    work = output / WORK_NAME
    start_or_resume(work, settings.described(), [source.stamp() for source in sources], output)
    parts = plan_parts(sources)
    try:
        encoded = encode_parts(settings, sources, parts, work, who, use_fast=not (work / "exact").exists())
    except EncoderMismatch as mismatch:
        print(f"{mismatch} differs from the Hugging Face tokenizer on this text: starting again without it", flush=True)
        restart_without_fast(work)
        encoded = encode_parts(settings, sources, parts, work, who, use_fast=False)
    datasets, finished = _merge(settings, sources, encoded.digests, parts, work)
    _check_rejects(settings, datasets)
    identity = _identity(settings, finished, encoded.num_compared_later)
    manifest = MixtureManifest(output, __version__, identity, settings.described(), datasets)
    _publish(manifest, work)
    return manifest


def _finished_before(settings: PreprocessSettings, sources: list[Source], output: Path) -> MixtureManifest:
    manifest = MixtureManifest.load(output)
    summaries = [(name, source) for name, summary in manifest.datasets.items() for source in summary.sources]
    before = [[name, source.path, source.size, source.sha256] for name, source in summaries]
    now = [[source.dataset, str(source.path), source.size, file_digest(source.path)] for source in sources]
    refuse_other(
        {"tool version": manifest.tool_version, "settings": manifest.settings, "sources": before},
        {"tool version": manifest.tool_version, "settings": settings.described(), "sources": now},
        output,
    )
    shutil.rmtree(output / WORK_NAME, ignore_errors=True)
    print(f"{output} is finished already: nothing to do", flush=True)
    return manifest


def _merge(
    settings: PreprocessSettings, sources: list[Source], digests: list[str], parts: list[Part], work: Path
) -> tuple[dict[str, DatasetSummary], list[FinishedPart]]:
    """Join the parts into datasets, in the work folder."""
    datasets: dict[str, DatasetSummary] = {}
    finished = [open_part(part, work) for part in parts]
    with open(work / REJECTS_NAME, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        rejects = io.TextIOWrapper(packed, "utf-8")
        for kind in dict.fromkeys(map(kind_of, settings.datasets)):
            of_one_kind = [part for part in finished if kind_of(part.part.dataset) == kind]
            stays = list(zip(of_one_kind, what_stays(of_one_kind, settings), strict=True))
            for name in of_kind(kind, settings.datasets):
                chosen = [(part, codes) for part, codes in stays if part.part.dataset == name]
                datasets[name] = merge_dataset(name, chosen, SourceCounts(sources, digests), settings, work, rejects)
        rejects.flush()
    return datasets, finished


def _identity(settings: PreprocessSettings, finished: list[FinishedPart], num_compared_later: int) -> TokenizerIdentity:
    tokenizer = settings.tokenizer
    return TokenizerIdentity(
        path=str(tokenizer.folder),
        digest=tokenizer.digest,
        eos_token=tokenizer.eos_token,
        eos_id=tokenizer.eos_id,
        bos_id=settings.bos_id,
        vocab_size=tokenizer.vocab_size,
        encoder=", ".join(sorted({part.result.encoder for part in finished})),
        compared_texts=num_compared_later + sum(part.result.num_compared for part in finished),
    )


def _check_rejects(settings: PreprocessSettings, datasets: dict[str, DatasetSummary]) -> None:
    """Raise DataError where a dataset has no sample, or lost too many records for being bad."""
    for name, summary in datasets.items():
        source = source_of(name)
        flag = f"--{kind_of(name)} {source}=..." if source else f"--{name}"
        settings.reading.check_rejects(flag, summary.records, summary.rejects)
        if summary.samples == 0:
            found = listed_counts(summary.rejects) or "no record at all"
            num_files = len(summary.sources)
            raise DataError(f"{flag}: no sample in {num_files} file(s): {found}; check paths and field names")


def _publish(manifest: MixtureManifest, work: Path) -> None:
    """Give every file its final name, the manifest last."""
    for name in [f"{name}.{suffix}" for name in manifest.datasets for suffix in ("bin", "idx")] + [REJECTS_NAME]:
        publish(work / name, manifest.folder / name)
    manifest.save()
    shutil.rmtree(work)


def restart_without_fast(work: Path) -> None:
    """Forget every finished part, and remember that the fast encoder is not to be used."""
    for path in work.glob("part-*"):
        path.unlink()
    flush(work)  # else, after a power failure, parts of the fast encoder might stand beside the mark
    (work / "exact").touch()
    flush(work)

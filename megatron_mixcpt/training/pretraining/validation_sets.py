"""Validation sets that ``--validation NAME=PATH`` names: datasets of preprocessed mixtures, or text as it is.

Text is tokenized once, by the first rank, with the mixture's tokenizer, as preprocessing does with documents. The
result lies beside the indices that the engine keeps (``--data-cache-path``, or ``MIXTURE/cache``), under a name that
depends on text and tokenizer: runs on the same mixture share it, and text that changed is tokenized again.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_mixcpt.data.dataset_names import is_dataset_name
from megatron_mixcpt.data.datasets.mixture_datasets import CACHE_NAME
from megatron_mixcpt.data.mixture.manifest import MANIFEST_NAME, MixtureManifest
from megatron_mixcpt.data.mixture.plan import MixturePlan, held_out_sequences
from megatron_mixcpt.data.preprocessing.run import preprocess
from megatron_mixcpt.data.preprocessing.settings import KeptKindSettings, PreprocessSettings
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.digests import file_digest
from megatron_mixcpt.jobs.whole_outputs import publish
from megatron_mixcpt.named_paths import parse_named_paths

_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class NamedSet:
    """One dataset of a mixture, all of whose samples are a validation set."""

    manifest: MixtureManifest
    dataset: str

    def identity(self) -> str:
        """What tells these samples from others: the digest of their tokens."""
        return self.manifest.datasets[self.dataset].bin_sha256


def parse_named_sets(given: Sequence[str]) -> dict[str, Path]:
    """Read ``NAME=PATH`` of each ``--validation``: name -> path, in order.

    Raises:
        ConfigError: another form, a name that is given twice or no name for a chart, a path that is not there.
        DataError: a path to files that hold no documents.
    """
    sets = {name: Path(path) for name, path in parse_named_paths("--validation", given).items()}
    for name, path in sets.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--validation {name}={path}: name it with letters, digits, '.', '-' and '_'")
        if _preprocessed(path) is None:
            _check_text(f"{name}={path}", path)
    return sets


def _check_text(text: str, path: Path) -> None:
    """Raise MixCPTError where there are no documents at ``path``, by the names of the files."""
    if not path.exists():
        raise ConfigError(
            f"--validation {text}: no such file or folder; give text (.txt, .jsonl, ...) or a dataset of a mixture "
            "(DIR/cpt)"
        )
    find_sources("validation", [str(path)])


def _preprocessed(path: Path) -> tuple[Path, str] | None:
    """(folder, name) where ``path`` is one dataset of a mixture, with or without .idx or .bin; None where it is text.

    Raises:
        ConfigError: a whole mixture.
    """
    if (path / MANIFEST_NAME).is_file():
        names = " or ".join(str(path / name) for name in MixtureManifest.load(path).datasets)
        raise ConfigError(f"--validation {path} is a mixture of several datasets: give one of them, {names}")
    for name in (path.name, path.stem) if path.suffix in (".idx", ".bin") else (path.name,):
        if is_dataset_name(name) and (path.parent / f"{name}.idx").is_file():
            return path.parent, name
    return None


def open_named_sets(
    sets: Mapping[str, Path], mixture: MixtureManifest, tokenizer_dir: Path, cache: str | None
) -> dict[str, NamedSet]:
    """Tokenize what is text, on the first rank, and open all sets. Every rank must call this.

    Args:
        sets: from :func:`parse_named_sets`.
        mixture: what is trained on; its tokenizer and end of sequence are the sets' as well.
        tokenizer_dir: Hugging Face folder with that tokenizer.
        cache: ``--data-cache-path``.

    Raises:
        MixCPTError: text that cannot be read, a mixture of another tokenizer.
    """
    folders = {}
    for name, path in sets.items():
        folders[name] = _preprocessed(path) or (_folder_for(path, mixture, cache), "cpt")
        if dist.get_rank() == 0 and not folders[name][0].exists():
            _tokenize(path, mixture, tokenizer_dir, folders[name][0])
    dist.barrier()
    opened = {name: NamedSet(MixtureManifest.load(folder), kind) for name, (folder, kind) in folders.items()}
    for name, item in opened.items():
        item.manifest.check_tokenizer(tokenizer_dir)
        if item.manifest.tokenizer.bos_id != mixture.tokenizer.bos_id:
            raise DataError(
                f"--validation {name}={sets[name]}: its samples begin with token {item.manifest.tokenizer.bos_id}, "
                f"those of {mixture.folder} with {mixture.tokenizer.bos_id}: preprocess both with --bos, or both with "
                "--no-bos"
            )
    return opened


def _folder_for(path: Path, mixture: MixtureManifest, cache: str | None) -> Path:
    """Where the tokens of ``path`` are kept."""
    digest = hashlib.sha256(
        f"{mixture.tokenizer.digest} {mixture.tokenizer.bos_id} {mixture.tokenizer.eos_id}".encode()
    )
    for source in find_sources("validation", [str(path)]):
        digest.update(f" {source.path.resolve()} {file_digest(source.path)}".encode())
    return Path(cache or mixture.folder / CACHE_NAME) / f"validation-{digest.hexdigest()[:16]}"


def _tokenize(path: Path, mixture: MixtureManifest, tokenizer_dir: Path, folder: Path) -> None:
    """Write the mixture of one kind that ``path`` gives to ``folder``: aside, for another run may be doing the same."""
    aside = folder.with_name(f"{folder.name}-{os.getpid()}")
    tokenizer = TokenizerFiles.read(tokenizer_dir, mixture.tokenizer.eos_token)
    documents = {"cpt": KeptKindSettings((str(path),))}
    has_bos = mixture.tokenizer.bos_id is not None
    try:
        preprocess(PreprocessSettings(datasets=documents, tokenizer=tokenizer, bos=has_bos), aside)
    except DataError as error:
        what = str(error).partition("; ")[0].removeprefix("--cpt: ")  # the rest is about flags of preprocessing
        raise DataError(
            f"--validation {path}: {what}; correct it, or preprocess it and give a dataset of the mixture"
        ) from error
    try:
        publish(aside, folder)
    except OSError:
        shutil.rmtree(aside)
        if not folder.exists():  # else another run was first
            raise


def held_out_datasets(manifest: MixtureManifest, plan: MixturePlan) -> list[str]:
    """The datasets of which at least one complete sequence is held out.

    Raises:
        ConfigError: there is none.
    """
    names = [name for name, count in held_out_sequences(manifest, plan).items() if count > 0]
    if not names:
        raise ConfigError(
            f"--split {plan.split} holds out less than one sequence of {plan.sequence_length} tokens of every dataset: "
            "hold out more, or nothing (--split 100,0,0)"
        )
    return names


def validation_names(held_out: Sequence[str], named: Iterable[str]) -> list[str]:
    """Names of the validation sets: held-out datasets, then named sets. Raises ConfigError for a name that is both."""
    for name in named:
        if name in held_out:
            raise ConfigError(
                f"--validation {name}=...: {name} is what --split holds out of that dataset: choose another name"
            )
    return [*held_out, *named]

"""mixture.json: what a folder of datasets holds, what it was made from, and with which tokenizer.

The preprocessing writes it last, so a folder that has it is complete. Training reads it to find the datasets, to plan
an epoch (``plan.py``) and to refuse a model whose tokenizer is not the one the tokens were made with::

    manifest = MixtureManifest.load(Path("data/mixture"))
    manifest.check_tokenizer(Path("models/llama-3-8b"))
    manifest.prefix("cpt")        # "data/mixture/cpt", what the engine calls a dataset's path
    manifest.datasets["cpt"].tokens
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from megatron_mixcpt.data.dataset_names import is_dataset_name, of_kind
from megatron_mixcpt.data.mixture.indexed import check_dataset
from megatron_mixcpt.data.records import KINDS
from megatron_mixcpt.data.tokens.tokenizer_files import tokenizer_digest
from megatron_mixcpt.errors import CheckpointError, DataError
from megatron_mixcpt.jobs.whole_outputs import write_whole

MANIFEST_NAME = "mixture.json"
FORMAT = 1


@dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer made the tokens."""

    path: str
    digest: str
    """What :func:`tokenizer_digest` says of its folder."""
    eos_token: str
    eos_id: int
    """The token id that ends each sample."""
    vocab_size: int
    """One more than the largest token id, added tokens included."""
    encoder: str = ""
    """The library that encoded, with its version."""
    compared_texts: int = 0
    """Texts that were encoded by the Hugging Face tokenizer as well, and gave the same tokens."""
    bos_id: int | None = None
    """The token id that begins each sample; None: its first token follows the end of the sample before."""


@dataclass(frozen=True)
class SourceSummary:
    """One input file."""

    path: str
    size: int
    """In bytes."""
    sha256: str
    records: int
    """Rows read: ``samples`` plus everything in ``rejects``."""
    samples: int
    tokens: int
    """Tokens of its samples, each sample's end of sequence included."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Rows that gave no sample, by reason."""


@dataclass(frozen=True)
class DatasetSummary:
    """One dataset of the mixture: ``<name>.bin`` and ``<name>.idx``."""

    samples: int
    tokens: int
    """Each sample's end of sequence included."""
    records: int
    rejects: dict[str, int]
    """Rows that gave no sample, by reason."""
    special_strings: int
    """Samples in which a special token's string stands as text."""
    sources: tuple[SourceSummary, ...]
    bin_sha256: str
    idx_sha256: str
    notes: dict[str, int] = field(default_factory=dict)
    """How often each optional step was applied, such as the removal of a chat template."""


@dataclass(frozen=True)
class MixtureManifest:
    """The contents of mixture.json, and the folder it lies in."""

    folder: Path
    tool_version: str
    tokenizer: TokenizerIdentity
    settings: dict[str, Any]
    datasets: dict[str, DatasetSummary]
    """By name: a kind (``cpt``), or each named source of one (``cpt.law``); kinds in the order cpt, sft, dpo."""

    def prefix(self, dataset: str) -> str:
        """The path of a dataset without .bin or .idx, as the engine's ``IndexedDataset`` wants it."""
        return str(self.folder / dataset)

    def check_tokenizer(self, tokenizer_dir: Path | str) -> None:
        """Raise CheckpointError unless ``tokenizer_dir`` holds the tokenizer that made this mixture's tokens."""
        digest = tokenizer_digest(tokenizer_dir)
        if digest != self.tokenizer.digest:
            raise CheckpointError(
                f"{tokenizer_dir}: its tokenizer (digest {digest[:12]}) is not the one of {self.folder} "
                f"({self.tokenizer.path}, digest {self.tokenizer.digest[:12]}); "
                f"preprocess again with --tokenizer {tokenizer_dir}"
            )

    def summary(self) -> str:
        """What the mixture holds, for a terminal."""
        width = max(len("kind"), *map(len, self.datasets)) + 1
        lines = [f"{'kind':<{width}}{'records':>14}{'rejected':>12}{'samples':>14}{'tokens':>18}"]
        for name, summary in self.datasets.items():
            rejected = summary.records - summary.samples
            lines.append(
                f"{name:<{width}}{summary.records:>14,}{rejected:>12,}{summary.samples:>14,}{summary.tokens:>18,}"
            )
            lines += [f"       {count:,} rejected: {reason}" for reason, count in summary.rejects.items()]
            lines += [f"       {count:,} samples: {note}" for note, count in summary.notes.items()]
            if summary.special_strings:
                lines.append(f"       {summary.special_strings:,} samples hold a special token's string, kept as text")
        identity = self.tokenizer
        lines.append(f"encoded by {identity.encoder}, {identity.compared_texts:,} texts compared with Hugging Face")
        begin = "" if identity.bos_id is None else f"begin with token {identity.bos_id} (BOS) and "
        lines.append(f"samples {begin}end with {identity.eos_token!r} (id {identity.eos_id})")
        lines.append(f"written to {self.folder}")
        return "\n".join(lines)

    def save(self) -> None:
        """Write mixture.json, complete or not at all."""
        content = {
            "format": FORMAT,
            "tool_version": self.tool_version,
            "tokenizer": asdict(self.tokenizer),
            "settings": self.settings,
            "kinds": {name: asdict(summary) for name, summary in self.datasets.items()},
        }
        write_whole(self.folder / MANIFEST_NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> "MixtureManifest":
        """Read mixture.json and check that each dataset it names is there and complete.

        Raises DataError where the folder is not a finished mixture, or where a dataset differs from its description.
        """
        path = Path(folder) / MANIFEST_NAME
        manifest = cls._parse(path, cls._read(path))
        for name, summary in manifest.datasets.items():
            found = check_dataset(Path(manifest.prefix(name)))
            if found != (summary.samples, summary.tokens):
                raise DataError(
                    f"{manifest.prefix(name)}.idx: {found[0]} samples with {found[1]} tokens where {path} says "
                    f"{summary.samples} with {summary.tokens}; run tools/preprocess_mixture.py again"
                )
        return manifest

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: no such file, so {path.parent} is no finished mixture; "
                "make one with tools/preprocess_mixture.py"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read ({error}); run tools/preprocess_mixture.py again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path}: not a mixture of format {FORMAT}; run tools/preprocess_mixture.py again")
        return content

    @classmethod
    def _parse(cls, path: Path, content: dict[str, Any]) -> "MixtureManifest":
        try:
            datasets = {}
            for name in (name for kind in KINDS for name in of_kind(kind, content["kinds"])):
                if not is_dataset_name(name):
                    raise ValueError(f"a dataset cannot be called {ascii(name)[:40]}")
                summary = dict(content["kinds"][name])
                summary["sources"] = tuple(SourceSummary(**source) for source in summary["sources"])
                datasets[name] = DatasetSummary(**summary)
            tokenizer = TokenizerIdentity(**content["tokenizer"])
            sources = [source for summary in datasets.values() for source in summary.sources]
            described: list[_Described] = [tokenizer, *datasets.values(), *sources]
            for item in described:
                _check_types(item)
            return cls(path.parent, content["tool_version"], tokenizer, content["settings"], datasets)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: damaged ({error}); run tools/preprocess_mixture.py again") from error


_Described = TokenizerIdentity | SourceSummary | DatasetSummary


def _check_types(described: _Described) -> None:
    """Raise TypeError where a field is not of the type that it is declared with."""
    for item in fields(described):
        value = getattr(described, item.name)
        wanted = get_args(item.type) if isinstance(item.type, UnionType) else (get_origin(item.type) or item.type,)
        is_good = type(value) in wanted
        if type(value) is dict and is_good:
            is_good = all(type(count) is int for count in value.values())
        if not is_good:
            raise TypeError(f"{item.name} is {ascii(value)[:40]}")

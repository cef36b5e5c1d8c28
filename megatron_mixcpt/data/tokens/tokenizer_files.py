"""What a tokenizer folder says without transformers: its definition, its end of sequence, its special tokens.

Reads tokenizer.json with the ``tokenizers`` library, which loads in a tenth of a second. A folder that has only
tokenizer.model or vocab.json and merges.txt is converted by transformers first, which is slow but rare.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.jobs.digests import file_digest

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE_SETS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer folder, read."""

    folder: Path
    digest: str
    """See :func:`tokenizer_digest`."""
    definition: str
    """The text of tokenizer.json."""
    eos_token: str
    eos_id: int
    vocab_size: int
    """One more than the largest token id, added tokens included."""
    special_tokens: tuple[str, ...]
    """Strings that would become control tokens if text were not taken as text."""

    @classmethod
    def read(cls, folder: Path | str, eos_token: str | None = None) -> "TokenizerFiles":
        """Read a Hugging Face folder. ``eos_token`` overrides what tokenizer_config.json says ends a sample.

        Raises CheckpointError where the folder holds no readable tokenizer, ConfigError where no end of sequence is
        known.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"--tokenizer {folder}: no such folder; give a Hugging Face model folder")
        digest = tokenizer_digest(folder)
        definition = _definition(folder)
        ids = _vocabulary(folder, definition)
        eos_token = eos_token or _configured_eos(folder)
        if eos_token is None or eos_token not in ids:
            found = "names no eos_token" if eos_token is None else f"has no token {eos_token!r}"
            raise ConfigError(f"--tokenizer {folder}: {found}; name the token that ends a sample with --eos-token")
        added = json.loads(definition).get("added_tokens", [])
        special = tuple(token["content"] for token in added if token["special"])
        return cls(folder, digest, definition, eos_token, ids[eos_token], max(ids.values()) + 1, special)


def _definition(folder: Path) -> str:
    path = folder / "tokenizer.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    except Exception as error:  # transformers raises whatever its converters meet
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(
            f"--tokenizer {folder}: cannot be turned into a tokenizer.json ({first_line}); save it with transformers"
        ) from error


def _vocabulary(folder: Path, definition: str) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(definition).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{folder / 'tokenizer.json'}: cannot be read ({error}); copy the file again") from error


def _configured_eos(folder: Path) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value: Any = _read_json(folder / name).get("eos_token")
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); copy the file again") from error
    return content if isinstance(content, dict) else {}


def tokenizer_digest(tokenizer_dir: Path | str) -> str:
    """The identity of a tokenizer: sha256, in hexadecimal, of the file or files that decide its token ids.

    That is tokenizer.json, or else tokenizer.model, or else vocab.json and merges.txt. The chat template and
    tokenizer_config.json do not count: they do not change what plain text encodes to, and export rewrites them.
    Raises CheckpointError where the folder holds none of these.
    """
    for names in TOKENIZER_FILE_SETS:
        paths = [Path(tokenizer_dir) / name for name in names]
        if all(path.is_file() for path in paths):
            if len(paths) == 1:
                return file_digest(paths[0])
            return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()
    wanted = ", ".join(" + ".join(names) for names in TOKENIZER_FILE_SETS)
    raise CheckpointError(f"{tokenizer_dir}: no tokenizer there (looked for {wanted}); give a Hugging Face folder")


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder; no code in it is run.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: it names no end of sequence.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its readers meet
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder}: no readable tokenizer ({first_line}); copy its files again") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{folder}: the tokenizer names no eos_token; add it to tokenizer_config.json")
    return tokenizer

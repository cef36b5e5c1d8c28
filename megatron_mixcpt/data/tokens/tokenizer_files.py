"""The tokenizer of a Hugging Face folder, as every stage uses it: what transformers' ``AutoTokenizer`` makes of it.

That is not always what the folder's tokenizer.json says: for some classes and model types transformers builds a
tokenizer of its own from the vocabulary (``file_difference.py``). Preprocessing therefore takes its definition from
``AutoTokenizer`` too. transformers takes seconds to import, which happens once, before any process is forked.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mixcpt.data.tokens.document_start import bos_id_of
from megatron_mixcpt.data.tokens.end_of_document import eos_warning
from megatron_mixcpt.data.tokens.file_difference import PROBES, file_difference, tokens_declared
from megatron_mixcpt.data.tokens.identity import definition_digest
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.terminal import say

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json")
_DECIDING_FILES = (
    *_VOCABULARY_FILES,
    *("merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"),
)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer folder, read."""

    folder: Path
    digest: str
    """See :func:`tokenizer_digest`."""
    definition: str
    """The tokenizer in the form of a tokenizer.json."""
    eos_token: str
    eos_id: int
    vocab_size: int
    """One more than the largest token id, added tokens included."""
    special_tokens: tuple[str, ...]
    """Strings that would become control tokens if text were not taken as text."""
    bos_id: int | None = None
    """What the tokenizer puts before a text."""

    @classmethod
    def read(cls, folder: Path | str, eos_token: str | None = None) -> "TokenizerFiles":
        """Read a Hugging Face folder. ``eos_token`` overrides the tokenizer's own as what ends a sample.

        Raises CheckpointError where the folder holds no usable tokenizer, ConfigError where no end of sequence is
        known.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"--tokenizer {folder}: no such folder; give a Hugging Face model folder")
        tokenizer = _fast_tokenizer(folder)
        ids = tokenizer.get_vocab()
        if eos_token is None:
            eos_token = _own_eos(folder, tokenizer, "name the token that ends a sample with --eos-token")
        elif eos_token not in ids:
            raise ConfigError(f"--eos-token {eos_token}: {folder} has no such token; give one of its tokens")
        definition = tokenizer.backend_tokenizer.to_str()
        _check_complete(folder, tokenizer, definition)
        added = json.loads(definition)["added_tokens"]
        special = tuple(token["content"] for token in added if token["special"])
        digest = definition_digest(definition)
        vocab_size = max(ids.values()) + 1
        return cls(folder, digest, definition, eos_token, ids[eos_token], vocab_size, special, bos_id_of(tokenizer))

    def warnings(self) -> list[str]:
        """What a person should know before using the tokens: other tokens by tokenizer.json, another end of sequence.

        Raises CheckpointError where a settings file of the folder cannot be read.
        """
        from tokenizers import Tokenizer

        found = []
        if difference := file_difference(self.folder, self.definition):
            found.append(difference)
        token_of = Tokenizer.from_str(self.definition).id_to_token
        if eos := eos_warning(self.folder, self.eos_token, self.eos_id, token_of):
            found.append(eos)
        return found


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder; no code in it is run.

    The first rank warns of a tokenizer.json that says something else.

    Raises:
        CheckpointError: it cannot be read, or has no form that preprocessing can use.
        ConfigError: it names no end of sequence, or one that is no token of its vocabulary.
    """
    folder = Path(folder)
    tokenizer = _fast_tokenizer(folder)
    _own_eos(folder, tokenizer, "name one of its tokens as eos_token in tokenizer_config.json")
    if os.environ.get("RANK", "0") == "0":
        _warn_of_difference(folder, tokenizer.backend_tokenizer.to_str())
    return tokenizer


@functools.cache
def _warn_of_difference(folder: Path, definition: str) -> None:
    """Once for a folder."""
    if difference := file_difference(folder, definition):
        say(f"warning: {difference}")


def tokenizer_digest(folder: Path | str) -> str:
    """The identity of a folder's tokenizer, see ``identity.py``: of what ``AutoTokenizer`` makes of the folder.

    Raises CheckpointError where the folder holds no usable tokenizer.
    """
    folder = Path(folder)
    stats = {path.name: path.stat() for name in _DECIDING_FILES if (path := folder / name).is_file()}
    return _digest(folder, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()))


@functools.cache
def _digest(folder: Path, stamps: tuple) -> str:
    """The same for files of these names, sizes and times."""
    return definition_digest(_fast_tokenizer(folder).backend_tokenizer.to_str())


def _fast_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """What transformers makes of a folder. Raises CheckpointError."""
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        wanted = ", ".join(_VOCABULARY_FILES)
        raise CheckpointError(f"{folder}: no tokenizer there (looked for {wanted}); give a Hugging Face folder")
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its readers meet
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{folder}: no tokenizer that transformers can read ({first_line or type(error).__name__}); give a Hugging "
            "Face folder with all of its tokenizer files"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise CheckpointError(
            f"{folder}: transformers reads its tokenizer as {type(tokenizer).__name__}, which has no tokenizer.json "
            "form; convert it to a folder with a tokenizer.json (a fast tokenizer) first"
        )
    return tokenizer


def _own_eos(folder: Path, tokenizer: "PreTrainedTokenizerFast", remedy: str) -> str:
    """The tokenizer's own end of sequence. Raises ConfigError where there is none.

    transformers adds to the vocabulary whatever tokenizer_config.json names: a name that was no token before has an id
    that no model was trained with.
    """
    token = tokenizer.eos_token
    if token is None:
        raise ConfigError(f"{folder}: the tokenizer names no eos_token; {remedy}")
    if tokenizer.backend_tokenizer.model.token_to_id(token) is None and token not in tokens_declared(folder):
        raise ConfigError(f"{folder}: its eos_token {token!r} is no token of its vocabulary; {remedy}")
    return token


def _check_complete(folder: Path, tokenizer: "PreTrainedTokenizerFast", definition: str) -> None:
    """Raise CheckpointError where a tokenizer's class does more to a text than its definition says."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(definition)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    for text in PROBES:
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        if backend.encode(text, add_special_tokens=False).ids != expected:
            raise CheckpointError(
                f"{folder}: {type(tokenizer).__name__} of transformers encodes {text!r} otherwise than its own "
                "definition; such a tokenizer cannot be used"
            )

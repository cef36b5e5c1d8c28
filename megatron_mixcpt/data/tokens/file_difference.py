"""Whether a folder's tokenizer.json encodes as the tokenizer that transformers makes of the folder.

transformers 5 builds ``Qwen2Tokenizer`` for every folder whose config.json says ``"model_type": "qwen2"``, and other
classes for other types: of tokenizer.json only vocabulary and merges are left then. Whoever serves the model with
``AutoTokenizer`` gets the tokens of the class, and so do all stages here; programs that read tokenizer.json alone get
others.
"""

import json
from pathlib import Path
from typing import Any

from megatron_mixcpt.data.tokens.identity import canonical_definition
from megatron_mixcpt.data.tokens.splitting import PROBE
from megatron_mixcpt.errors import CheckpointError

PROBES = (
    *("a b", " a", "12345", "  x", "a  b", "x\n\n\ny", "a\r\nb", "\tx\n", "it's", "IT'S", "x+=1;", "...!?"),
    *(
        "e\u0301",
        "\u212b",
        "\ufb01",
        "\u00bd \u00b2",
        "\u00e9\u00fc\u00df",
        "\u4f60\u597d\uff0c\u4e16\u754c",
        "\U0001f642",
        "\u00a0x",
        "a\u200db",
        "",
    ),
    "def foo(x): return x + 12345",
    PROBE,
)
"""Texts on which tokenizers differ if they do, the short ones first."""
SHOWN_TOKENS = 12


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. Raises CheckpointError where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); copy the file again") from error
    return content if isinstance(content, dict) else {}


def tokens_declared(folder: Path) -> set[str]:
    """The added tokens that a folder's files give an id, beside the vocabulary proper."""
    added = read_json(folder / "tokenizer.json").get("added_tokens") or []
    decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return {token["content"] for token in [*added, *decoder.values()]} | set(read_json(folder / "added_tokens.json"))


def file_difference(folder: Path, definition: str) -> str | None:
    """A text that tokenizer.json encodes otherwise than ``definition``, with both lists of tokens, as one sentence.

    None where no difference was found, or where there is no tokenizer.json.

    Args:
        folder: a Hugging Face folder.
        definition: the tokenizer that transformers makes of it, in the form of a tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file() or canonical_definition(own := path.read_text(encoding="utf-8")) == canonical_definition(
        definition
    ):
        return None
    used, stated = Tokenizer.from_str(definition), Tokenizer.from_str(own)
    for text in PROBES:
        ours, theirs = (_tokens(tokenizer, text) for tokenizer in (used, stated))
        if ours != theirs:
            return (
                f"{folder}: transformers builds a tokenizer of its own for this folder, which all stages use: "
                f"{ascii(text)} becomes {_shown(ours)}, and by tokenizer.json {_shown(theirs)}"
            )
    return None


def _tokens(tokenizer: Any, text: str) -> list[tuple[int, str]]:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return list(zip(encoding.ids, encoding.tokens, strict=True))


def _shown(tokens: list[tuple[int, str]]) -> str:
    names = " ".join(ascii(token)[1:-1] if not token.isprintable() else token for _, token in tokens[:SHOWN_TOKENS])
    more = f" and {len(tokens) - SHOWN_TOKENS} more" if len(tokens) > SHOWN_TOKENS else ""
    return f"{len(tokens)} token{'' if len(tokens) == 1 else 's'} [{names}{more}]"

"""The bytes that preprocessing writes for a fixed corpus do not change unnoticed.

``python -m tests.integration.test_preprocess_golden`` writes the expected digests again.
"""

import json
import os
import tempfile
from pathlib import Path

from megatron_mixcpt.data.preprocessing.run import preprocess
from megatron_mixcpt.data.preprocessing.tool import build_parser, preprocess_settings
from megatron_mixcpt.jobs.digests import file_digest
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess"


def written_digests(folder: Path) -> dict[str, str]:
    """Preprocess the corpus into ``folder``, and return the sha256 of every .bin and .idx."""
    flags = [item for kind in ("cpt", "sft", "dpo") for item in (f"--{kind}", str(GOLDEN / f"{kind}.jsonl"))]
    flags += ["--tokenizer", str(GOLDEN / "tokenizer"), "--output", str(folder)]
    preprocess(preprocess_settings(build_parser().parse_args(flags)), folder)
    return {path.name: file_digest(path) for path in sorted(folder.glob("*.[bi][id][nx]"))}


def test_bytes_are_those_of_the_golden_digests(tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "digests.json").read_text())
    environment = dict(os.environ)
    assert written_digests(tmp_path / "out") == expected and len(expected) == 6
    assert dict(os.environ) == environment  # a trainer that tokenizes a validation text goes on in it


if __name__ == "__main__":
    if not (GOLDEN / "tokenizer").exists():
        save_tiny_tokenizer(GOLDEN / "tokenizer", "llama3")
    with tempfile.TemporaryDirectory() as output:
        digests = written_digests(Path(output) / "out")
    (GOLDEN / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")

"""What preprocessing is compared with: each a small separate program, given a corpus, a tokenizer and a folder."""

import subprocess
import venv
from pathlib import Path

ENCODER_ALONE = """
import sys, fastokens, orjson
tokenizer = fastokens.Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
texts, size = [], 0
for line in open(sys.argv[1], "rb"):
    texts.append(orjson.loads(line)["text"])
    size += len(texts[-1])
    if size > 1 << 17:
        tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        texts, size = [], 0
tokenizer.encode_batch_flat(texts, split_special_tokens=True)
"""
HUGGING_FACE_ALONE = """
import sys, json, itertools, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
with open(sys.argv[1]) as file:
    while texts := [json.loads(line)["text"] for line in itertools.islice(file, 64)]:
        tokenizer.encode_batch_fast(texts, add_special_tokens=False)
"""
PLAIN_WAY = """
import sys, json, os, torch
from transformers import AutoTokenizer
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
os.makedirs(sys.argv[3], exist_ok=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
builder = IndexedDatasetBuilder(sys.argv[3] + "/plain.bin", dtype=DType.optimal_dtype(len(tokenizer)))
with open(sys.argv[1]) as file:
    for line in file:
        ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False) + [tokenizer.eos_token_id]
        builder.add_document(torch.IntTensor(ids), [len(ids)])
builder.finalize(sys.argv[3] + "/plain.idx")
"""
DATATROVE = """
import sys, os
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer
folder, name = os.path.split(sys.argv[1])
tokenizer = MegatronDocumentTokenizer(
    sys.argv[3] + "/tokens", "corpus", sys.argv[2] + "/tokenizer.json", eos_token="<|endoftext|>", batch_size=1000
)
LocalPipelineExecutor([JsonlReader(folder, glob_pattern=name), tokenizer], logging_dir=sys.argv[3] + "/logs").run()
"""


def datatrove_python(folder: Path) -> tuple[str | None, str]:
    """The interpreter of a virtual environment below ``folder`` that has datatrove, made where it is not there.

    Returns (path, version), or (None, why not).
    """
    python = folder / "datatrove" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "datatrove", with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "datatrove>=0.6,<1", "tokenizers", "orjson", "numpy"]
    show = [str(python), "-c", "from importlib.metadata import version; print(version('datatrove'))"]
    if subprocess.run(show, capture_output=True).returncode != 0:
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode != 0:
            return None, (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    return str(python), subprocess.run(show, capture_output=True, text=True).stdout.strip()

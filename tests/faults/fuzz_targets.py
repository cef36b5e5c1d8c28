"""What is fuzzed: for each kind of input a way to make hostile ones, and what reads them.

A target draws an input, writes it into an empty folder and hands it to the code that users' files meet. It may end well
or with an error that the user can correct (:class:`MixCPTError`, or what rejects a single record); anything else is
a finding. ``CANARY`` is the file that the hostile inputs try to make: its presence is a finding too.
"""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from megatron_mixcpt.conversion.hf_chat_template import save_chat_template
from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.conversion.megatron_for_engine import open_for_engine
from megatron_mixcpt.conversion.tensor_files.reader import INDEX_NAME, SafetensorsFolder
from megatron_mixcpt.data.mixture.indexed import INDEX_MAGIC, check_dataset
from megatron_mixcpt.data.mixture.manifest import MANIFEST_NAME, MixtureManifest
from megatron_mixcpt.data.reading.readers import read_records
from megatron_mixcpt.data.reading.row_filter import RowFilter
from megatron_mixcpt.selection import select
from megatron_mixcpt.selection.settings import SelectSettings
from tests.faults.fuzz_inputs import JSON, Draw, damaged, dumped, mutated, nested
from tests.faults.fuzz_templates import CANARY, chat_template

RECORDS = {
    "cpt": {"text": "a document", "meta": {"score": 0.5}},
    "sft": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "dpo": {"prompt": "q", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]},
}


def records(draw: Draw, folder: Path) -> None:
    """Lines of JSONL of each kind, whole, mutated, damaged or no JSON at all."""
    kind = draw(st.sampled_from(sorted(RECORDS)))
    lines = [damaged(draw, dumped(mutated(draw, RECORDS[kind]))) for _ in range(draw(st.integers(0, 3)))]
    lines += [nested(draw)] * draw(st.integers(0, 1)) + [draw(st.binary(max_size=20))] * draw(st.integers(0, 1))
    path = folder / draw(st.sampled_from(["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet", "x.arrow", "x.txt"]))
    path.write_bytes(b"\n".join(lines))
    list(read_records(kind, [str(path)]))


HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}


def safetensors_header(draw: Draw, folder: Path) -> None:
    """A safetensors file whose header lies, in every way JSON can."""
    header = draw(st.sampled_from([dumped(HEADER), dumped(mutated(draw, HEADER)), nested(draw)]))
    length = draw(st.one_of(st.just(len(header)), st.integers(0, 2**64 - 1)))
    content = struct.pack("<Q", length) + header + bytes(24)
    (folder / "model.safetensors").write_bytes(damaged(draw, content))
    read_all(SafetensorsFolder(folder))


def safetensors_index(draw: Draw, folder: Path) -> None:
    """An index that names shards elsewhere, or is not an index."""
    header = dumped(HEADER)
    (folder / "shard.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    outside = folder.parent / f"{folder.name}.safetensors"
    outside.write_bytes((folder / "shard.safetensors").read_bytes())
    names = st.sampled_from(["shard.safetensors", f"../{outside.name}", str(outside), ".", ""]) | JSON
    index = {"metadata": {"total_size": 24}, "weight_map": {"a": draw(names)}}
    (folder / INDEX_NAME).write_bytes(damaged(draw, dumped(draw(st.sampled_from([index, mutated(draw, index)])))))
    found = SafetensorsFolder(folder)
    assert all(entry.path.parent == folder for entry in found.entries.values()), "outside"
    read_all(found)


def read_all(tensors: SafetensorsFolder) -> None:
    """Read every tensor: a header that was believed must be true."""
    for name in tensors.entries:
        tensors.read(name)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "vocab_size": 100,
    "tie_word_embeddings": True,
    "head_dim": 16,
    "sliding_window": None,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "no_rope_layers": [1, 0],
}


def config_json(draw: Draw, folder: Path) -> None:
    """A model's config.json with wrong types and sizes."""
    config = {**CONFIG, "architectures": [draw(st.sampled_from(sorted(ARCHITECTURES)))]}
    for _ in range(draw(st.integers(1, 3))):
        config = mutated(draw, config)
    (folder / "config.json").write_bytes(damaged(draw, dumped(config)))
    assert len(read_config(folder).hf_shapes()) < 1_000_000


SUMMARY = {
    "samples": 2,
    "tokens": 5,
    "records": 2,
    "rejects": {},
    "special_strings": 0,
    "sources": [{"path": "a", "size": 1, "sha256": "0", "records": 2, "samples": 2, "tokens": 5, "rejects": {}}],
    "bin_sha256": "0",
    "idx_sha256": "0",
    "notes": {},
}
MIXTURE = {
    "format": 1,
    "tool_version": "0",
    "tokenizer": {
        "path": "t",
        "digest": hashlib.sha256(b"{}").hexdigest(),
        "eos_token": "e",
        "eos_id": 0,
        "vocab_size": 9,
    },
    "settings": {},
    "kinds": {"cpt": SUMMARY},
}
IDX = INDEX_MAGIC + struct.pack("<QBQQ2i2q3q", 1, 8, 2, 3, 2, 3, 0, 4, 0, 1, 2)


def mixture_json(draw: Draw, folder: Path) -> None:
    """A manifest that does not describe its folder, and a mixture that lacks what the manifest says."""
    (folder / "cpt.idx").write_bytes(IDX)
    (folder / "cpt.bin").write_bytes(bytes(10))
    (folder / "tokenizer.json").write_bytes(b"{}")
    content = draw(st.sampled_from([dumped(MIXTURE), dumped(mutated(draw, MIXTURE))]))
    (folder / MANIFEST_NAME).write_bytes(damaged(draw, content))
    manifest = MixtureManifest.load(folder)
    manifest.summary()
    manifest.check_tokenizer(folder)


def idx(draw: Draw, folder: Path) -> None:
    """An index of tokens with other counts, lengths and places than its tokens have."""
    numbers = [draw(st.just(good) | st.integers(-(2**31), 2**31 - 1)) for good in (2, 3, 0, 4, 0, 1, 2)]
    whole = INDEX_MAGIC + struct.pack("<QBQQ2i2q3q", 1, 8, 2, 3, *numbers)
    (folder / "x.idx").write_bytes(damaged(draw, draw(st.sampled_from([whole, IDX]))))
    (folder / "x.bin").write_bytes(bytes(10))
    if check_dataset(folder / "x") == (2, 5):
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        assert [len(sequence) for sequence in IndexedDataset(str(folder / "x"))[:]] == [2, 3]


PIECES = [
    "score",
    "meta.score",
    "lang",
    ">=",
    "==",
    "in",
    "not in",
    "and",
    "or",
    "not",
    "(",
    ")",
    ",",
    "[",
    "]",
    "'en'",
]
PIECES += ["0.5", "1e999", "9" * 400, "null", "len(", "lower(", "number(", "field('x')", "field(1)", "-", "*", "**"]
PIECES += ["true", "endswith(", "<", "score.score", "field('a.b')", "# x", "\\", "'"]
PIECES += ["().__class__", "__import__('os')", "lambda:0", "{}", ":=", "text", "startswith(", "f'{x}'", "if", "else"]


def filter_expression(draw: Draw, folder: Path) -> None:
    """A filter of random words of its language and of Python's, on random rows."""
    words = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)
    deep = st.tuples(st.sampled_from(["not ", "(", "[", "-"]), st.integers(1, 5000)).map(lambda part: part[0] * part[1])
    expression = draw(words | st.text(max_size=20) | deep.map(lambda start: f"{start}score"))
    chosen = RowFilter(expression, "--cpt-filter")
    for _ in range(2):
        row = draw(st.dictionaries(st.sampled_from(["score", "lang", "text", "x"]), JSON | st.just({"score": 1})))
        chosen(row)


SCORE = {
    "id": "0" * 32,
    "kind": "sft",
    "fas": 1.5,
    "perplexity": 9.0,
    "record": RECORDS["sft"],
    "source": "a",
    "line": 1,
}


def score_file(draw: Draw, folder: Path) -> None:
    """Lines that scoring would not have written."""
    lines = [damaged(draw, dumped(mutated(draw, SCORE))) for _ in range(draw(st.integers(0, 3)))]
    (folder / "scores.jsonl").write_bytes(b"\n".join([*lines, dumped(SCORE)]))
    strategy = draw(st.sampled_from(["high", "low", "half", "random", "low-perplexity"]))
    with mock.patch.object(select, "draw", return_value=None):  # a picture takes a second
        select.select_alignment(
            SelectSettings(
                scores=folder / "scores.jsonl",
                kind="sft",
                strategy=strategy,
                output=folder / "out.jsonl",
                rejects=folder / "left.jsonl",
            )
        )


def tokenizer_settings(draw: Draw, folder: Path) -> None:
    """The two files that a chat template is written into."""
    generation, tokenizer = {"eos_token_id": [1, 2]}, {"chat_template": "{{ messages }}", "eos_token": "e"}
    (folder / "generation_config.json").write_bytes(damaged(draw, dumped(mutated(draw, generation))))
    (folder / "tokenizer_config.json").write_bytes(damaged(draw, dumped(mutated(draw, tokenizer))))
    save_chat_template(folder, "{{ messages }}", [1])


CALL = f"cos\nsystem\n(S'touch {CANARY}'\ntR."


def checkpoint_index(draw: Draw, folder: Path) -> None:
    """The pickle that a checkpoint's index is, hostile or damaged; and its tracker file."""
    import pickle

    whole = pickle.dumps({"state_dict_metadata": {}, "storage_data": draw(JSON)})
    tracker = draw(st.sampled_from([b"7", b"release", b"../..", b"\xff", b"-1", b"9" * 5000]) | st.binary(max_size=4))
    (folder / "latest_checkpointed_iteration.txt").write_bytes(tracker)
    for name in ("iter_0000007", "release"):
        (folder / name).mkdir()
        (folder / name / "metadata.json").write_text("{}")
        content = draw(st.sampled_from([CALL.encode(), damaged(draw, whole), b"\x80\x04\x8e" + b"\xff" * 8]))
        (folder / name / ".metadata").write_bytes(content)
    open_for_engine(folder).arguments()


TARGETS: dict[str, Callable[[Draw, Path], None]] = {
    target.__name__: target
    for target in (
        records,
        safetensors_header,
        safetensors_index,
        config_json,
        mixture_json,
        idx,
        filter_expression,
        chat_template,
        score_file,
        tokenizer_settings,
        checkpoint_index,
    )
}

"""The commands whose power is cut: what they run, and which of the things that they leave have a final name."""

import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_mixcpt.conversion.megatron_iterations import iteration_folders, why_incomplete
from tests.faults.disk import read_tree
from tests.faults.launchers import free_port

type Units = dict[str, object]
"""What has a final name: name -> content. A folder that gets its name as a whole is one."""
type Process = Callable[[], None]

NUM_RANKS = 2
ITERATIONS = 6
TP2 = ["--tensor-model-parallel-size", "2", "--use-distributed-optimizer"]


class Kind(NamedTuple):
    """A command. ``processes`` takes the inputs and the folder to write into, and gives what runs at the same time."""

    processes: Callable[[Path, Path], Sequence[Process]]
    units: Callable[[Path], Units]
    trains: bool = False
    parts: Callable[[Mapping[str, bytes | None]], Units] = lambda tree: {}
    """Of a folder's tree: the parts that count as finished to a command that is started again."""


def make_inputs(folder: Path) -> None:
    """Fill ``folder`` with models, texts, samples and a mixture."""
    from tests.faults.interruptions import make_folder

    make_folder(folder)
    write_texts(folder)


def write_texts(folder: Path) -> None:
    """Write what is preprocessed, a bad record among it, and a plain text to evaluate on."""
    texts = [json.dumps({"text": f"document {n}: " + "a fox, the dog. " * (n % 9)}) for n in range(150)]
    texts[7] = '{"text": 5}'
    (folder / "texts.jsonl").write_text("\n".join(texts))
    (folder / "plain.txt").write_text("a fox, the dog. " * 20)


def make_checkpoints(folder: Path) -> None:
    """After :func:`make_inputs`: a checkpoint of weights, one of adapters, and scores, to export and to select from."""
    from megatron_mixcpt.conversion.convert import convert_from_hf
    from tests.distributed.tiny_run import flags

    convert_from_hf(folder / "world" / "chat", folder / "release")
    _score(folder, folder)
    argv = flags(folder / "world", iterations=1)
    place = argv.index("--teacher")
    del argv[place : place + 2]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    os.environ |= ranks
    _tool("pretrain_mixcpt", [*argv, "--lora-rank", "2", "--save", str(folder / "adapters")])


def _preprocess(inputs: Path, root: Path, num_workers: int = 1) -> None:
    from megatron_mixcpt.data.preprocessing.parts.encode import WhoWorks
    from megatron_mixcpt.data.preprocessing.run import preprocess
    from megatron_mixcpt.data.preprocessing.tool import build_parser, preprocess_settings
    from megatron_mixcpt.data.reading import parts

    parts.PART_BYTES = 2500
    argv = ["--cpt", inputs / "texts.jsonl", "--on-bad-record", "skip"]
    argv += ["--tokenizer", inputs / "world" / "chat", "--output", root / "mixture"]
    settings = preprocess_settings(build_parser().parse_args(list(map(str, argv))))
    preprocess(settings, root / "mixture", WhoWorks(num_workers))


def _score(inputs: Path, root: Path) -> None:
    argv = ["--hf-model", inputs / "world" / "chat", "--sft", inputs / "world" / "sft.jsonl", "--seq-length", "256"]
    argv += ["--chat-template", "zephyr"]
    _tool("score_alignment", list(map(str, [*argv, "--output", root / "scores.jsonl"])))


def _select(inputs: Path, root: Path) -> None:
    from megatron_mixcpt.selection.select_tool import main

    argv = ["--scores", inputs / "scores.jsonl", "--kind", "sft", "--top-k", "4", "--strategy", "low"]
    main(list(map(str, [*argv, "--output", root / "chosen.jsonl", "--rejects", root / "rest.jsonl"])))


def _evaluate(inputs: Path, root: Path) -> None:
    argv = ["--hf-model", inputs / "world" / "chat", "--perplexity", f"texts={inputs / 'plain.txt'}"]
    _tool("evaluate", list(map(str, [*argv, "--output", root / "results"])))


def _from_hf(inputs: Path, root: Path) -> None:
    from megatron_mixcpt.conversion.convert import convert_from_hf

    convert_from_hf(inputs / "world" / "chat", root / "release")


def _to_hf(inputs: Path, root: Path) -> None:
    from megatron_mixcpt.conversion.convert import convert_to_hf

    convert_to_hf(inputs / "release", root / "model", max_shard_bytes=200_000)


def _to_peft(inputs: Path, root: Path) -> None:
    from megatron_mixcpt.conversion.adapters.peft_export import export_adapter

    export_adapter(inputs / "adapters", root / "adapter")


def _tool(name: str, argv: list[str]) -> None:
    from tests.faults import faulty

    importlib.import_module(faulty.TOOLS[name]).main(argv)


def _rank(rank: int, port: str, tool: str, argv: list[str]) -> None:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS), "MASTER_PORT": port}
    os.environ |= ranks | {"MASTER_ADDR": "localhost"}
    from tests.faults import faulty

    sys.modules["__main__"] = faulty  # which the writer of asynchronous checkpoints imports
    _tool(tool, argv)


def _training(case: str, *more: str) -> Callable[[Path, Path], Sequence[Process]]:
    def processes(inputs: Path, root: Path) -> Sequence[Process]:
        from tests.faults.interruptions import command

        tool, argv = command(inputs, case, root / "save")
        argv += ["--data-cache-path", str(root / "cache"), *more]
        port = free_port()
        return [functools.partial(_rank, rank, port, tool, argv) for rank in range(NUM_RANKS)]

    return processes


def run_alone(function: Callable[..., None], **options: int) -> Callable[[Path, Path], Sequence[Process]]:
    """``function(inputs, root)`` in one process."""
    return lambda inputs, root: [functools.partial(function, inputs, root, **options)]


def units_of_training(root: Path) -> Units:
    """Each complete iteration and the folder of metadata, and each file of the cache but for what is in progress."""
    save, units = root / "save", dict[str, object]()
    for folder in iteration_folders(save):
        if why_incomplete(folder) is None:
            units[folder.name] = read_tree(folder)
    if (save / "hf").exists():
        units["hf"] = read_tree(save / "hf")
    return units | files_of(root / "cache")


def files_of(root: Path) -> Units:
    """Each file whose path has no hidden part."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return {str(path.relative_to(root)): path.read_bytes() for path in visible}


def _folders(root: Path) -> Units:
    """Each folder as a whole."""
    return {path.name: read_tree(path) for path in root.iterdir() if not path.name.startswith(".")}


def parts_of(mark: str, *others: str, until: str) -> Callable[[Mapping[str, bytes | None]], Units]:
    """Parts of which the file with the suffix ``mark`` is there: then these others must be. None once ``until`` is."""

    def parts(tree: Mapping[str, bytes | None]) -> Units:
        names = [] if until in tree else [name for name in tree if re.search(rf"/part-\d+{re.escape(mark)}$", name)]
        bases = [name.removesuffix(mark) for name in names]
        return {
            f"a finished part {base[-6:]}": [tree.get(base + suffix) for suffix in (mark, *others)] for base in bases
        }

    return parts


_PREPROCESSED = parts_of(".json", ".bin", ".samples", ".minhash", ".rejects", until="mixture/mixture.json")
_SHORT = ("--train-iters", str(ITERATIONS))
KINDS = {
    "cpt": Kind(_training("dp2", *_SHORT), units_of_training, True),
    "cpt, --keep-last 1": Kind(_training("tp2", *_SHORT, "--keep-last", "1"), units_of_training, True),
    "cpt, --async-save": Kind(_training("tp2", *_SHORT, "--async-save", "--keep-last", "2"), units_of_training, True),
    "sft": Kind(_training("sft", "--epochs", "2", "--save-interval", "3"), units_of_training, True),
    "dpo": Kind(
        _training("dpo", "--epochs", "1", "--save-interval", "3", "--precompute-reference"), units_of_training, True
    ),
    "preprocess": Kind(run_alone(_preprocess), files_of, parts=_PREPROCESSED),
    "preprocess, 2 workers": Kind(run_alone(_preprocess, num_workers=2), files_of, parts=_PREPROCESSED),
    "score": Kind(run_alone(_score), files_of, parts=parts_of(".scores", ".rejects", until="scores.jsonl")),
    "select": Kind(run_alone(_select), files_of),
    "evaluate": Kind(run_alone(_evaluate), _folders),
    "from Hugging Face": Kind(run_alone(_from_hf), _folders),
    "to Hugging Face": Kind(run_alone(_to_hf), _folders),
    "to PEFT": Kind(run_alone(_to_peft), _folders),
}

"""The map of the package: its rooms, what each is for, and which others it may import.

``test_imports.py`` holds the code against it, and the table in CONTRIBUTING.md is this one::

    python tests/unit/room_map.py           # prints the table for CONTRIBUTING.md

A room is a folder, or a module beside the folders. Every room may import itself, the rooms inside it, the room that it
lies in, and ``errors``. The table is the design: a new arrow is a decision, not a fix of a test.
"""

from typing import NamedTuple


class Room(NamedTuple):
    """One room."""

    purpose: str
    may_import: frozenset[str] = frozenset()
    takes: str = "nothing heavy"
    """``nothing heavy``; ``torch``; ``engine core`` (megatron.core and torch); ``engine`` (megatron.training too)."""


def _room(purpose: str, may_import: str = "", takes: str = "nothing heavy") -> Room:
    return Room(purpose, frozenset(may_import.split()), takes)


HEAVY = {
    "nothing heavy": frozenset[str](),
    "torch": frozenset({"torch"}),
    "engine core": frozenset({"torch", "megatron.core"}),
    "engine": frozenset({"torch", "megatron.core", "megatron.training"}),
}

ROOMS = {
    "errors": _room("what a user can correct, as one line", "torchrun_report"),
    "torchrun_report": _room("a user's error stays the last line on the screen"),
    "terminal": _room("what people read while a program runs"),
    "rank_exit": _room("a failed rank ends at once, with all that it started", "terminal torchrun_report"),
    "named_paths": _room("NAME=PATH on a command line"),
    "flags": _room("settings as dataclasses: flags, help and record"),
    "parallel_sizes": _room("how a run's ranks are divided, checked as the engine would", "flags pipeline_stages"),
    "pipeline_stages": _room("how many layers each pipeline stage holds", "flags"),
    "log_names": _room("names of the curves that training writes and the report reads"),
    "objective": _room("the options of the loss", "flags"),
    "adapters": _room("low-rank adapters beside a frozen model, and their settings", "flags", "engine core"),
    "config": _room("settings of each training stage", "adapters flags objective data/reading"),
    "training_log": _room("the curves of a run, read from TensorBoard files"),
    "nvidia_driver": _room("whether there is an NVIDIA device, and why CUDA does not work on it"),
    "cpu_emulation": _room("the engine on machines without a GPU", "nvidia_driver", "torch"),
    "jobs": _room(
        "complete outputs, claims, resumable folders, digests, progress, ranks, worker processes",
        "terminal",
        takes="torch",
    ),
    "losses": _room("mathematics over a sharded vocabulary", "objective", "torch"),
    "models": _room(
        "what a model has beyond the engine's, and layers without Transformer Engine", "log_names", "engine core"
    ),
    "models/delta_net": _room("gated delta nets, in the place of attention", takes="engine core"),
    "models/layer_options": _room("what an option changes in a layer", takes="engine core"),
    "data": _room("records: documents, conversations, preferences"),
    "data/reading": _room("files become records", "flags"),
    "data/reading/rows": _room("a row becomes a record of a kind", "data"),
    "data/reading/formats": _room("one file for each input format, and their registry", "data"),
    "data/chat": _room("chat templates and the tokens of a conversation"),
    "data/tokens": _room("texts become token ids", "terminal"),
    "data/mixture": _room("datasets on disk, mixture.json, the plan of a run", "data/tokens jobs"),
    "data/preprocessing": _room(
        "all of tools/preprocess_mixture.py", "data/reading data/tokens data/mixture flags jobs"
    ),
    "data/preprocessing/parts": _room(
        "its work in parts, by one process or many", "data/reading data/tokens data/mixture jobs"
    ),
    "data/datasets": _room("the engine's datasets and packed rows", "data/chat data/mixture jobs", "engine core"),
    "conversion": _room(
        "Hugging Face and Megatron checkpoints, both ways", "data/tokens flags jobs models training_log", "engine core"
    ),
    "conversion/adapters": _room(
        "adapters in checkpoints, merged into models, and as PEFT folders",
        "adapters conversion/architectures conversion/tensor_files jobs training_log",
        "torch",
    ),
    "conversion/tensor_files": _room("safetensors files: headers, slices, shards", takes="torch"),
    "conversion/architectures": _room("rules and tables of families of models", "models", "torch"),
    "conversion/architectures/families": _room("one file of tables per family of models", "models", "torch"),
    "distillation": _room("teacher and student in one pipeline", "adapters losses models objective", "engine core"),
    "inference": _room(
        "a model in memory without the trainer",
        "flags parallel_sizes conversion conversion/adapters models losses data/tokens",
        "engine core",
    ),
    "verification": _room(
        "a model folder and its conversion, checked", "flags conversion conversion/adapters inference", "torch"
    ),
    "evaluation": _room(
        "perplexity, benchmark tasks, MT-Bench",
        "flags named_paths inference data data/chat data/reading data/tokens jobs rank_exit evaluation/models",
        "torch",
    ),
    "evaluation/models": _room(
        "what answers the questions: a model in this process, on all ranks, or behind a server",
        "flags inference conversion data/tokens jobs terminal",
        "torch",
    ),
    "evaluation/tasks": _room("benchmark tasks that lm-eval lacks"),
    "selection": _room(
        "scores and selects samples for alignment",
        "flags inference data data/chat data/reading data/tokens jobs rank_exit",
        "torch",
    ),
    "planning": _room("memory of a run on paper", "adapters flags objective parallel_sizes conversion"),
    "report": _room("one page about several runs", "flags named_paths log_names training_log data data/mixture jobs"),
    "training": _room(
        "what all trainings share: batches, the model, recipes, one run at a time",
        "adapters distillation models log_names parallel_sizes jobs rank_exit terminal",
        "engine",
    ),
    "training/engine": _room(
        "what wraps the engine's training loop",
        "adapters config flags parallel_sizes log_names conversion conversion/architectures data/reading distillation "
        "models jobs terminal torchrun_report rank_exit",
        "engine",
    ),
    "training/lora": _room(
        "adapters of a run: flags, record, summary",
        "adapters conversion conversion/adapters flags training/engine",
        "engine",
    ),
    "training/pretraining": _room(
        "continual pre-training",
        "training/engine training/lora adapters config terminal flags objective parallel_sizes log_names named_paths "
        "conversion inference distillation models conversion/architectures losses data data/reading data/tokens "
        "data/mixture data/preprocessing data/datasets jobs rank_exit",
        "engine",
    ),
    "training/alignment": _room(
        "SFT and DPO",
        "training/engine training/lora adapters config flags jobs log_names parallel_sizes conversion inference "
        "distillation losses models data data/reading data/chat data/tokens data/datasets rank_exit terminal",
        "engine",
    ),
    "testing": _room("gloo ranks for the tests", takes="engine"),
}


def table() -> str:
    """The map as Markdown."""
    lines = ["| room | for | imports, beside `errors` | heavy |", "|---|---|---|---|"]
    for name, room in ROOMS.items():
        imports = ", ".join(sorted(room.may_import)) or "-"
        lines.append(f"| `{name}` | {room.purpose} | {imports} | {room.takes.replace('nothing heavy', '-')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

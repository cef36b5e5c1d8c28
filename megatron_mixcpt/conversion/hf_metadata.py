"""The files of a model folder that are not weights: they travel with a Megatron checkpoint, byte for byte.

A checkpoint folder keeps them once, as ``hf/``, beside its iterations: config.json, tokenizer, chat template,
generation settings, and ``source.json``, which says where they come from. Export needs nothing else, and no base model.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from megatron_mixcpt.conversion.model_folder import HFModel, read_model_folder
from megatron_mixcpt.conversion.safetensors_folder import read_json
from megatron_mixcpt.errors import CheckpointError

FOLDER_NAME = "hf"
SOURCE_NAME = "source.json"
SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
TEMPLATE_FOLDER = "additional_chat_templates"


def metadata_files(folder: Path) -> list[Path]:
    """Files to carry, relative to ``folder``: tokenizer, templates and settings; no weights, code or model card."""
    candidates = [*folder.glob("*"), *folder.glob(f"{TEMPLATE_FOLDER}/*.jinja")]
    return sorted(
        path.relative_to(folder)
        for path in candidates
        if path.suffix in SUFFIXES
        and path.is_file()
        and not path.name.endswith(".index.json")
        and path.name != SOURCE_NAME
    )


def metadata_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the carried files, in hexadecimal."""
    digest = hashlib.sha256()
    for name in metadata_files(folder):
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def copy_files(source: Path, target: Path) -> None:
    """Copy the carried files of ``source`` into the existing folder ``target``, byte for byte."""
    for name in metadata_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


def copy_hf_metadata(hf_dir: str | Path, save_dir: str | Path, hf_model: HFModel | None = None) -> Path:
    """Keep a model folder's metadata as ``save_dir/hf``; call it on one process. Returns that folder.

    Written aside and renamed, so that it is there whole or not at all. Where it is there already, nothing is written.

    Args:
        hf_dir: the model folder that training starts from.
        save_dir: the checkpoint folder (``--save``); made where missing.
        hf_model: the folder as already read, to save reading its headers again.

    Raises:
        CheckpointError: ``save_dir`` holds the metadata of another model.
    """
    source, target = Path(hf_dir), Path(save_dir) / FOLDER_NAME
    digest = metadata_digest(source)
    if target.exists():
        kept = read_json(target / SOURCE_NAME)
        if kept.get("digest") != digest:
            raise CheckpointError(
                f"{target} is from {kept.get('base_model')}, whose config or tokenizer differ from {source}: "
                "give another --save folder"
            )
        return target
    model = hf_model or read_model_folder(source)
    origin = {
        "base_model": source.resolve().name,
        "vocab_size": model.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "digest": digest,
    }
    aside = target.with_name(f".{FOLDER_NAME}.{os.getpid()}")
    aside.mkdir(parents=True)
    copy_files(source, aside)
    (aside / SOURCE_NAME).write_text(json.dumps(origin, indent=2) + "\n")
    aside.rename(target)
    return target

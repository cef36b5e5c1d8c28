"""The files of a model folder other than its weights, which travel with a Megatron checkpoint byte for byte.

A checkpoint folder keeps them once, as ``hf/``, beside its iterations: config.json, tokenizer, chat template,
generation settings, and ``source.json``, which says where they come from. Export needs nothing else: no base model.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_mixcpt.conversion.base_weights import KEY as BASE_WEIGHTS_KEY
from megatron_mixcpt.conversion.carried import KEY, carried_summary
from megatron_mixcpt.conversion.hf_chat_template import save_chat_template
from megatron_mixcpt.conversion.hf_model_folder import CONFIG_NAME, HFModel, ModelPlan, read_model_folder
from megatron_mixcpt.conversion.tensor_files.reader import read_json
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.whole_outputs import whole_folder

FOLDER_NAME = "hf"
SOURCE_NAME = "source.json"
QUANTIZATION = "quantization"
SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
TEMPLATE_FOLDER = "additional_chat_templates"


def metadata_files(folder: Path) -> list[Path]:
    """The files to carry, relative to ``folder``: tokenizer, templates and settings; no weights, code or model card."""
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


def copy_hf_metadata(
    hf_dir: str | Path,
    save_dir: str | Path,
    hf_model: ModelPlan | None = None,
    *,
    chat_template: str | None = None,
    stop_token_ids: Sequence[int] = (),
    rope_scaling: str | None = None,
    base_weights: str | None = None,
) -> Path:
    """Copy a model folder's metadata to ``save_dir/hf``, which is returned; call it on one process.

    The folder is either complete or absent. Where it exists already, it is only compared.

    Args:
        hf_dir: the model folder that training starts from, or the ``hf`` folder of a checkpoint.
        save_dir: the checkpoint folder (``--save``); made where missing.
        hf_model: ``hf_dir`` as already read, so that its headers are not read again. Where its config is not what
            config.json holds, because the run lengthens the context, config.json is written anew.
        chat_template: the Jinja template that the run trains with; None keeps the folder's.
        stop_token_ids: tokens that end a response in that template, see :func:`~.hf_chat_template.save_chat_template`.
        rope_scaling: the rotary embedding that the run trains with, as one line; None: that of config.json.
        base_weights: digest of the weights that adapters are trained beside (``base_weights.py``); None: the checkpoint
            holds a whole model.

    Raises:
        CheckpointError: ``save_dir`` holds the metadata of another model, or of a run with another chat template,
            rotary embedding or base of adapters.
    """
    source, target = Path(hf_dir), Path(save_dir) / FOLDER_NAME
    wanted = {"digest": metadata_digest(source)}
    if chat_template is not None:
        wanted["chat_template"] = hashlib.sha256(chat_template.encode("utf-8")).hexdigest()
    if rope_scaling is not None:
        wanted["rope_scaling"] = rope_scaling
    if base_weights is not None:
        wanted[BASE_WEIGHTS_KEY] = base_weights
    if target.exists():
        _check_same(target, source, wanted)
        return target
    origin = _origin(source, hf_model) | wanted
    with whole_folder(target) as aside:
        copy_files(source, aside)
        if chat_template is not None:
            save_chat_template(aside, chat_template, stop_token_ids)
        config = None if hf_model is None else hf_model.document(hf_model.config)
        if config is not None and config != read_json(aside / CONFIG_NAME):
            (aside / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        (aside / SOURCE_NAME).write_text(json.dumps(origin, indent=2) + "\n")
    return target


def _check_same(target: Path, source: Path, wanted: Mapping[str, str]) -> None:
    """Raise CheckpointError unless ``target`` is what copying ``source`` with these settings would make."""
    kept = read_json(target / SOURCE_NAME)
    if kept.get("digest") != wanted["digest"]:
        raise CheckpointError(
            f"{target} belongs to {kept.get('base_model')}, whose config or tokenizer differs from {source}: "
            "choose another --save folder"
        )
    if kept.get("chat_template") != wanted.get("chat_template"):
        raise CheckpointError(f"{target} belongs to a run with another chat template: choose another --save folder")
    if kept.get("rope_scaling") != wanted.get("rope_scaling"):
        raise CheckpointError(
            f"{target} belongs to a run with the rotary embedding {kept.get('rope_scaling') or 'of the model'}, this "
            f"one has {wanted.get('rope_scaling') or 'that of the model'}: give the --rope-scaling that it had, or "
            "choose another --save folder"
        )
    if kept.get(BASE_WEIGHTS_KEY) != wanted.get(BASE_WEIGHTS_KEY):
        other = "adapters of other weights than" if BASE_WEIGHTS_KEY in kept else "a run that trains all weights of"
        raise CheckpointError(f"{target} belongs to {other} {source}: choose another --save folder")


def _origin(source: Path, hf_model: ModelPlan | None) -> dict[str, Any]:
    """What ``source.json`` says of the base model: read from the folder, or handed on from a checkpoint's own."""
    if (source / SOURCE_NAME).exists():
        known = read_json(source / SOURCE_NAME)
        return {key: known[key] for key in ("base_model", "vocab_size", "dtype", QUANTIZATION, KEY) if key in known}
    model = hf_model if isinstance(hf_model, HFModel) else read_model_folder(source)
    dtype = str(model.dtype).removeprefix("torch.")
    names = {"base_model": source.resolve().name, "vocab_size": model.vocab_size, "dtype": dtype}
    quantization = {QUANTIZATION: model.quantization} if model.quantization else {}
    return names | quantization | carried_summary(model)

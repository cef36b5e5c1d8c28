"""What continual pre-training trains on, beyond its flags; see ``engine/run_record.py``."""

import hashlib
from pathlib import Path

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.conversion.context_length import canonical
from megatron_mixcpt.conversion.hf_metadata import metadata_digest
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan
from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.mixture.plan import MixturePlan
from megatron_mixcpt.training.engine.run_record import Record, files_digest


def mixture_contents(config: MixCPTConfig, manifest: MixtureManifest, plan: MixturePlan) -> Record:
    """The mixture's content, what is drawn from it, and the teacher's weights."""
    digests = [digest for dataset in manifest.datasets.values() for digest in (dataset.bin_sha256, dataset.idx_sha256)]
    return {
        "--split": plan.split,
        "the mixture's content": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
        "sequences": ", ".join(f"{dataset.name} {dataset.num_sequences}" for dataset in plan.datasets),
        "the teacher": _weights_digest(Path(config.teacher_dir)) if config.objective.holds_teacher else "none",
    }


def rotary_embedding(config: MixCPTConfig, student: ModelPlan) -> Record:
    """The rotary embedding of --rope-scaling, however it is written; nothing without the flag."""
    return {"--rope-scaling": canonical(student)} if config.rope_scaling else {}


def _weights_digest(folder: Path) -> str:
    """Tells a model's weights from another's without reading them: its settings and the start of each file."""
    return files_digest(folder.glob("*.safetensors"), start=metadata_digest(folder))

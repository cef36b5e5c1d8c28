"""What decides the loss and the order of the samples of continual pre-training; see ``engine/run_record.py``."""

import argparse
import hashlib
from pathlib import Path

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.conversion.hf_metadata import metadata_digest
from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.mixture.plan import MixturePlan
from megatron_mixcpt.flags import described
from megatron_mixcpt.training.engine.run_record import Record

_COMPARED_BYTES = 1 << 20  # of each weight file


def mixture_record(
    args: argparse.Namespace, config: MixCPTConfig, manifest: MixtureManifest, plan: MixturePlan
) -> Record:
    """What decides the loss and the order of the samples in continual pre-training."""
    digests = [digest for kind in manifest.kinds.values() for digest in (kind.bin_sha256, kind.idx_sha256)]
    return {
        **described(config.objective),
        "--document-masking": config.document_masking,
        **{f"--{name.replace('_', '-')}": getattr(args, name) for name in ("seed", "seq_length", "global_batch_size")},
        "--split": plan.split,
        "the mixture's content": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
        "sequences": ", ".join(f"{kind.kind} {kind.num_sequences}" for kind in plan.kinds),
        "the teacher": _weights_digest(Path(config.teacher_dir)) if config.objective.holds_teacher else "none",
    }


def _weights_digest(folder: Path) -> str:
    """Tells a model's weights from another's without reading them: its settings and the start of each file."""
    digest = hashlib.sha256(metadata_digest(folder).encode())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(_COMPARED_BYTES))
    return digest.hexdigest()[:16]

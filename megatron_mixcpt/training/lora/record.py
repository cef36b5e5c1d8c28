"""What of a run's adapters its record compares on resume, beyond flags; see ``training/engine/run_record.py``."""

from pathlib import Path

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.conversion.base_weights import weights_digest
from megatron_mixcpt.conversion.hf_model_folder import HFModel, ModelPlan
from megatron_mixcpt.flags import flag_name
from megatron_mixcpt.training.engine.run_record import Record, files_digest
from megatron_mixcpt.training.lora.run_settings import as_settings


def adapters_record(lora: LoRASettings | None, model: ModelPlan, adapter: str | None) -> Record:
    """Their settings, their base, and where they start from.

    Args:
        lora: the run's adapters; None: it trains none, and the record says nothing of them.
        model: the base model, a Hugging Face folder.
        adapter: the PEFT folder that they start from.
    """
    base_weights = digest_of_base(lora, model)
    if lora is None or base_weights is None:
        return {}
    settings = as_settings(lora)
    flags = {flag_name(name): settings[name] for name in settings if name != "lora_adapter"}
    start = {"the adapters to start from": files_digest(Path(adapter).glob("adapter_*"))} if adapter else {}
    return {**flags, "the base model's weights": base_weights[:16], **start}


def digest_of_base(lora: LoRASettings | None, model: ModelPlan) -> str | None:
    """Of the weights that adapters are trained beside, those of a Hugging Face folder; None: the run trains none."""
    if lora is None:
        return None
    assert isinstance(model, HFModel), "adapters belong to a Hugging Face folder"
    return weights_digest(model)

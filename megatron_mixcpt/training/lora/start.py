"""The first values of adapters that go on from a PEFT folder."""

from pathlib import Path

from megatron_mixcpt.adapters.attached import Adapters
from megatron_mixcpt.conversion.adapters.peft_folder import read_peft_folder
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan


def fill_adapters(adapters: Adapters | None, folder: str | None, plan: ModelPlan) -> None:
    """Fill a stage's adapters, in place, with this rank's part of those in a PEFT folder (``--lora-adapter``).

    Args:
        adapters: of a stage; None: it has none.
        folder: where they start from; None: they keep their first values.
        plan: the base model.
    """
    if adapters is not None and folder is not None:
        adapters.fill(read_peft_folder(Path(folder), plan).weights)

"""Settings that the tools which run a model without the trainer share: which model, and how it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model."""

    hf_model: Path | None = setting(default=None, metavar="DIR", decides=False)
    """Hugging Face model folder. Either this or --load is required."""
    load: Path | None = setting(default=None, metavar="DIR", decides=False)
    """Megatron checkpoint."""

    def __post_init__(self) -> None:
        check_one_model(self.hf_model, self.load)

    @property
    def folder(self) -> Path:
        """The folder that is given."""
        folder = self.load if self.hf_model is None else self.hf_model
        assert folder is not None
        return folder


@dataclass(frozen=True, kw_only=True)
class LayoutSettings:
    """How the model runs (under torchrun; ranks beyond TP x PP are data parallel)."""

    tensor_model_parallel_size: int = setting(default=1, metavar="TP", decides=False)
    """Tensor-parallel ranks."""
    pipeline_model_parallel_size: int = setting(default=1, metavar="PP", decides=False)
    """Pipeline stages."""
    expert_model_parallel_size: int = setting(default=1, metavar="EP", decides=False)
    """Groups of data-parallel ranks that the experts of a mixture are divided into."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the weights and of the computation."""


def check_one_model(hf_model: Path | None, load: Path | None) -> None:
    """Raise ConfigError unless exactly one of the two is given."""
    if (hf_model is None) == (load is None):
        raise ConfigError("give the model with either --hf-model (Hugging Face folder) or --load (checkpoint)")

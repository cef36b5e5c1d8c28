"""The model to run: a Hugging Face folder, or a Megatron checkpoint with its ``hf/`` folder."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_mixcpt.conversion.adapters.checkpoint import refuse_adapters
from megatron_mixcpt.conversion.hf_metadata import FOLDER_NAME
from megatron_mixcpt.conversion.hf_model_folder import HFModel, ModelPlan, read_config, read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.inference.engine_model import (
    build_engine_model,
    load_megatron_weights,
    load_on_this_rank,
    transformer_config,
)
from megatron_mixcpt.inference.settings import check_one_model
from megatron_mixcpt.parallel_sizes import ParallelSizes

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelSource:
    """A model whose settings are read, and whose weights are not in memory yet."""

    plan: ModelPlan
    """Architecture, config and tokenizer; ``plan.folder`` is a Hugging Face folder, with or without weights."""
    weights: Path
    """The folder that holds the weights: ``plan.folder``, or one iteration of a Megatron checkpoint."""

    @classmethod
    def open(
        cls, *, hf_model: Path | None = None, load: Path | None = None, iteration: int | None = None
    ) -> "ModelSource":
        """Read the settings of ``--hf-model``, or of ``--load`` at an iteration (None: the latest).

        Raises:
            ConfigError: neither or both are given, or the engine cannot express the model.
            CheckpointError: the folder is missing, damaged or incomplete, or holds adapters, which are not a model.
        """
        check_one_model(hf_model, load)
        if hf_model is not None:
            return cls(read_model_folder(hf_model), hf_model)
        assert load is not None
        checkpoint = MegatronCheckpoint(load, iteration)
        refuse_adapters(checkpoint)
        if not (load / FOLDER_NAME).is_dir():
            raise CheckpointError(
                f"{load} has no {FOLDER_NAME}/ folder with the model's config and tokenizer: export it with "
                "tools/convert_to_hf.py --hf-reference DIR, and give the result as --hf-model"
            )
        return cls(read_config(load / FOLDER_NAME), checkpoint.folder)

    @property
    def is_megatron(self) -> bool:
        """Whether the weights are a Megatron checkpoint's."""
        return not isinstance(self.plan, HFModel)

    @property
    def iteration(self) -> int | None:
        """The iteration of a training run's checkpoint; None for a release and for a Hugging Face folder."""
        is_numbered = self.is_megatron and self.weights.name != "release"
        return int(self.weights.name.removeprefix("iter_")) if is_numbered else None

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer. Raises CheckpointError where it cannot be read, or belongs to another model."""
        tokenizer = load_tokenizer(self.plan.folder)
        if (largest := max(tokenizer.get_vocab().values())) >= self.plan.vocab_size:
            raise CheckpointError(
                f"{self.plan.folder}: the tokenizer has ids up to {largest}, the model {self.plan.vocab_size} "
                "embeddings; use the tokenizer that belongs to the model"
            )
        return tokenizer

    def described(self) -> dict[str, object]:
        """What identifies these weights: the folder, and names, sizes and modification times of its files."""
        files = sorted(path for path in self.weights.iterdir() if path.is_file())
        stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return {"model": str(self.weights.resolve()), "model files": stamps}

    def check_layout(self, tp_size: int, pp_size: int, *, cp_size: int = 1, ep_size: int = 1) -> None:
        """Raise ConfigError where the model or the ranks that were started cannot be divided by the parallel sizes."""
        sizes = {
            "tensor_model_parallel_size": tp_size,
            "pipeline_model_parallel_size": pp_size,
            "context_parallel_size": cp_size,
            "expert_model_parallel_size": ep_size,
        }
        ParallelSizes.of({**self.plan.engine_arguments, **sizes}, int(os.environ.get("WORLD_SIZE", "1")))

    def build(self, dtype: torch.dtype) -> GPTModel:
        """This rank's part of the model, with its weights; the parallel groups must be initialised."""
        model = build_engine_model(self.plan, transformer_config(self.plan, dtype), parallel_output=True).to(dtype)
        self.load_into(model)
        return model.eval()

    def load_into(self, model: GPTModel) -> None:
        """Fill this rank's part of the model, in place."""
        if isinstance(self.plan, HFModel):
            load_on_this_rank(model, self.plan)
        else:
            load_megatron_weights(model, self.weights.parent, self.iteration)

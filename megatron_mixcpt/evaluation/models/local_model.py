"""The model as transformers reads it: in this process alone, or in every rank's.

Generation needs a cache of keys and values, which transformers has. A Megatron checkpoint is exported first: the folder
holds the same weights, lies in a temporary place and is removed at the end.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped] # its types are a package of their own
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from megatron_mixcpt.conversion.convert import convert_to_hf
from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.progress import TaskProgress, count_questions
from megatron_mixcpt.evaluation.models.shares import Shares, generation_batches, likelihood_batches
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.terminal import say

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEMORY_SHARE = 0.7
"""Of a device's free memory, what the weights may take where every rank holds them; the rest is for the cache."""


class LocalModel(HFLM):
    """Answers lm-eval's requests, and prompts of conversations.

    lm-eval encodes a prompt as the tokenizer does, BOS included, unless the prompt begins with BOS.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        shares: Shares | None = None,
    ):
        """``shares``: the ranks that answer together; the first one's methods are called, on the others ``help``."""
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._shares = shares
        self.progress = TaskProgress()
        self.set_cache_hook(self.progress)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request: its prompt, continued as its options say."""
        items = [request.args for request in requests]
        with self.progress.asking(count_questions(requests), len(requests)):
            return self._ask("generate", items, lambda: generation_batches(items, self._num_tokens, self.batch_size))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each request's continuation given its context, and whether it is the greedy one."""
        with self.progress.asking(count_questions(requests), len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        return self._ask("score", requests, lambda: likelihood_batches(requests, self.batch_size))

    def reply(self, prompts: Sequence[str], sampling: Mapping[str, Any], seed: int) -> list[str]:
        """The answer to each prompt, which holds its special tokens; every prompt is sampled from ``seed`` anew."""
        items = [(prompt, dict(sampling), seed) for prompt in prompts]
        with self.progress.asking(len(items), len(items)):
            return self._ask("reply", items, lambda: [[place] for place in range(len(items))])

    def help(self) -> None:
        """Answer what the first rank deals out, until it has all it wants."""
        assert self._shares is not None
        self._shares.answer_until_the_end(self._answer)

    def end(self) -> None:
        """Let the ranks that help end."""
        if self._shares is not None:
            self._shares.end()

    def _num_tokens(self, text: str) -> int:
        return len(self.tok_encode(text))

    def _ask(self, kind: str, items: list[Any], batches: Any) -> list[Any]:
        """The answers to ``items``, of this process or of all."""
        if self._shares is None:
            return self._answer(kind, items)
        return self._shares.ask(kind, items, batches(), self._answer)

    def _answer(self, kind: str, items: list[Any]) -> list[Any]:
        """What this process makes of its share."""
        if not items:
            return []
        self.progress.expect(len(items))
        if kind == "generate":
            return super().generate_until([SimpleNamespace(args=item) for item in items], disable_tqdm=True)  # type: ignore[misc] # its args are all it reads
        if kind == "score":
            return super()._loglikelihood_tokens(items, disable_tqdm=True)
        return [self._reply(*item) for item in items]

    @torch.no_grad()
    def _reply(self, prompt: str, sampling: dict[str, Any], seed: int) -> str:
        torch.manual_seed(seed)
        inputs = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(self.device)
        output = self.model.generate(**inputs, **sampling, do_sample=True)
        self.progress.add(1)
        return self.tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@contextmanager
def local_model(
    source: ModelSource, dtype: torch.dtype, batch_size: int, *, on_all_ranks: bool
) -> Iterator[LocalModel | None]:
    """The model in memory, on the first rank; None on others, whose part is over then.

    ``on_all_ranks``: all ranks of torchrun call it, and answer together if the whole model has room on each of them;
    otherwise the first rank alone calls it, and transformers spreads the model over the GPUs that this process sees.

    Raises CheckpointError where the checkpoint cannot be exported, ConfigError where the weights are quantized.
    """
    is_first = not on_all_ranks or int(os.environ.get("RANK", "0")) == 0
    # Exported before the ranks join: the export would take their group for one that writes together.
    with hugging_face_folder(source) if is_first else nullcontext(source.weights) as own:
        shares = Shares() if on_all_ranks else None
        if shares is not None:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        folder = own if shares is None else shares.from_first(own)
        if shares is not None and not shares.all_agree(fits_here(folder, dtype)):
            shares.leave()
            shares = None
            if is_first:
                say(f"{folder}: not every rank has room for the whole model; the first one answers all questions")
        if shares is None:
            yield LocalModel(*load_for_generation(folder, dtype, spread=True), batch_size) if is_first else None
            return
        model = LocalModel(*load_for_generation(folder, dtype, spread=False), batch_size, shares)
        if is_first:
            yield model
            model.end()
        else:
            model.help()
            yield None
        shares.leave()


@contextmanager
def hugging_face_folder(source: ModelSource) -> Iterator[Path]:
    """The model's folder for transformers: its own, or an export of the checkpoint, which is there inside the block."""
    if not source.is_megatron:
        yield source.weights
        return
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        exported = Path(folder) / "model"
        convert_to_hf(source.weights.parent, exported, iteration=source.iteration)
        yield exported


def load_for_generation(
    folder: Path, dtype: torch.dtype, *, spread: bool
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model and tokenizer of a Hugging Face folder, by transformers, on this rank's device.

    ``spread``: over all GPUs that this process sees instead, where there are several.
    """
    several = spread and torch.cuda.device_count() > 1
    model = _model_class(folder).from_pretrained(folder, dtype=dtype, device_map="auto" if several else None)
    if not several:
        model = model.to(torch.cuda.current_device())
    return model.eval(), load_tokenizer(folder)


def fits_here(folder: Path, dtype: torch.dtype) -> bool:
    """Whether this rank sees the folder, and has memory for the whole model beside the other ranks of its machine."""
    if not folder.is_dir():
        return False
    from transformers import AutoConfig

    with torch.device("meta"):
        model = _model_class(folder)(AutoConfig.from_pretrained(folder))
    num_bytes = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    return num_bytes <= MEMORY_SHARE * _free_bytes()


def _free_bytes() -> float:
    """Of this rank's device; of the host's memory its share, where the device is the CPU."""
    device = torch.zeros(1, device=torch.cuda.current_device()).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _model_class(folder: Path) -> Any:
    """transformers' class of a folder. Raises ConfigError where its weights are quantized."""
    import transformers

    plan = read_config(folder)
    if plan.quantization:
        raise ConfigError(
            f"{folder}: its weights are quantized ({plan.quantization}), and whether transformers computes with them "
            "or with bfloat16 depends on the device: convert and export it, and evaluate the export"
        )
    return getattr(transformers, plan.architecture.name)

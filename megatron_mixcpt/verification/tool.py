"""Check a Hugging Face model folder, and prove that it is the same model in the engine or as a Megatron checkpoint.

    .venv/bin/python tools/verify_conversion.py --hf-model Meta-Llama-3-8B --load checkpoints/llama3-8b
    .venv/bin/torchrun --nproc-per-node 4 tools/verify_conversion.py --hf-model DIR --tensor-model-parallel-size 2 \\
        --pipeline-model-parallel-size 2

First the folder alone (NaN, embedding rows near zero, tokenizer), then the checkpoint's bits, then the forward pass
against transformers on real text, layer by layer. The exit code is 1 where something differs.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from megatron_mixcpt import flags
from megatron_mixcpt.conversion.adapters.checkpoint import refuse_adapters
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import ConfigError, DataError, exit_on_user_error
from megatron_mixcpt.flags import Parser, flag_of, setting, settings_from
from megatron_mixcpt.inference.parallel_groups import start_ranks
from megatron_mixcpt.verification.compare import (
    TOLERANCES,
    BitComparison,
    ForwardComparison,
    Tolerance,
    compare_bits,
    compare_forward,
)
from megatron_mixcpt.verification.preflight import Preflight, check_hf_model

SAMPLE_TEXT = """The tides are caused by the gravitational pull of the Moon and, to a lesser degree, of the Sun. Twice a
day the sea rises along most coasts, and twice it falls; around new and full moon the two bodies pull in line, and the
range is greatest. Sailors kept tables of high water long before anyone could explain why the times shift by about fifty
minutes from one day to the next.

def high_waters(first, days, shift=timedelta(minutes=50)):
    \"\"\"Times of the first high water on each of `days` days.\"\"\"
    return [first + day * (timedelta(days=1) + shift) for day in range(days)]
"""


@dataclass(frozen=True, kw_only=True)
class VerificationSettings:
    """What is compared, and how."""

    hf_model: Path = setting(metavar="DIR")
    """Hugging Face model folder."""
    load: Path | None = setting(default=None, metavar="DIR")
    """Megatron checkpoint made from it. Default: --hf-model is read into the engine directly."""
    iteration: int | None = None
    """Iteration of --load. Default: the latest."""
    text: Path | None = setting(default=None, metavar="FILE")
    """Text to run the models on. Default: a short sample."""
    num_tokens: int = 256
    """Number of tokens to take from the start of the text."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights and of the computation, in both models."""
    tensor_model_parallel_size: int = 1
    """Ranks that split each layer of the engine's model."""
    pipeline_model_parallel_size: int = 1
    """Pipeline stages of the engine's model."""
    expert_model_parallel_size: int = 1
    """Ranks that share the experts of the engine's model."""
    preflight_only: bool = False
    """Only check the folder and the checkpoint's bits; run no model."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise ConfigError(f"{flag_of(type(self), field.name)} {value}: must be greater than 0")

    @property
    def layout(self) -> tuple[int, int, int]:
        """Tensor-, pipeline- and expert-parallel sizes."""
        return self.tensor_model_parallel_size, self.pipeline_model_parallel_size, self.expert_model_parallel_size


def build_parser() -> Parser:
    """The parser of ``tools/verify_conversion.py``."""
    return flags.build_parser(__doc__, VerificationSettings)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Check the folder, the bits and the forward pass; exit code 1 where one of them fails."""
    settings = settings_from(build_parser().parse_args(argv), VerificationSettings)
    healthy = int(os.environ.get("RANK", "0")) != 0 or _check_on_disk(settings)
    if not settings.preflight_only:
        healthy = _check_forward(settings) and healthy
    sys.exit(0 if healthy else 1)


def _check_on_disk(settings: VerificationSettings) -> bool:
    hf_model = read_model_folder(settings.hf_model)
    preflight = check_hf_model(hf_model)
    print(f"{hf_model.folder}: {hf_model.architecture.name}, {preflight.num_tensors} tensors, {hf_model.dtype}")
    print("".join(preflight_lines(preflight)), end="")
    if settings.load is None:
        return not preflight.problems
    checkpoint = MegatronCheckpoint(settings.load, settings.iteration)
    refuse_adapters(checkpoint)
    bits = compare_bits(hf_model, checkpoint)
    print(f"{settings.load}: {bits_line(bits)}")
    return not (preflight.problems or bits.different)


def preflight_lines(preflight: Preflight) -> list[str]:
    """What is wrong with a model folder, for a terminal."""
    problems = [f"  problem: {text}\n" for text in preflight.problems]
    return problems + [f"  warning: {text}\n" for text in preflight.warnings]


def bits_line(bits: BitComparison) -> str:
    """A comparison of tensors, for a terminal."""
    line = f"{bits.num_equal} tensors bit for bit, {len(bits.cast)} in another dtype"
    return line + (f", {len(bits.different)} DIFFERENT: {', '.join(bits.different[:3])}" if bits.different else "")


def _check_forward(settings: VerificationSettings) -> bool:
    check_num_ranks(settings)
    start_ranks(*settings.layout)
    dtype = getattr(torch, settings.dtype)
    found = compare_forward(
        settings.hf_model, tokens_of(settings), load_dir=settings.load, iteration=settings.iteration, dtype=dtype
    )
    if dist.get_rank() == 0:
        print(forward_lines(found, TOLERANCES[dtype], settings.dtype))
    dist.destroy_process_group()
    return found.passes(TOLERANCES[dtype])


def check_num_ranks(settings: VerificationSettings) -> None:
    """Raise ConfigError unless torchrun started exactly one copy of the model."""
    num_ranks, needed = int(os.environ.get("WORLD_SIZE", "1")), math.prod(settings.layout)
    if num_ranks != needed:
        sizes = zip(("TP", "PP", "EP"), settings.layout, strict=True)
        layout = " x ".join(f"{name} {size}" for name, size in sizes if size > 1 or name != "EP")
        raise ConfigError(f"{layout} needs {needed} processes, not {num_ranks}: use torchrun --nproc-per-node {needed}")


def tokens_of(settings: VerificationSettings) -> torch.Tensor:
    """Token ids of the text, int64 [s]. Raises DataError where it cannot be read or has none."""
    try:
        text = settings.text.read_text(encoding="utf-8") if settings.text else SAMPLE_TEXT
    except (OSError, ValueError) as error:
        raise DataError(f"--text {settings.text} could not be read as UTF-8 ({error}); name a text file") from error
    tokenizer = AutoTokenizer.from_pretrained(settings.hf_model, trust_remote_code=False)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: settings.num_tokens]
    if not tokens:
        raise DataError(f"--text {settings.text} has no tokens; name a file that has text in it")
    return torch.tensor(tokens)


def forward_lines(found: ForwardComparison, tolerance: Tolerance, dtype: str) -> str:
    """A comparison of forward passes in ``dtype``, for a terminal."""
    first = found.first_difference(tolerance)
    where = "no layer differs" if first is None else f"FIRST DIFFERENCE in layer {first} (from 0)"
    return "\n".join(
        (
            f"forward in {dtype}: {where}; worst layer {max(found.layers):.1e} "
            f"(allowed {tolerance.hidden:.0e} of its largest value)",
            f"  logits   {found.logit:.1e} of the largest (allowed {tolerance.logit:.0e})",
            f"  KL       {found.kl:.1e} nats a token (allowed {tolerance.kl:.0e})",
            f"  top-1    {found.top1:.4f} agree (at least {tolerance.top1})",
            "the same model" if found.passes(tolerance) else "NOT the same model",
        )
    )

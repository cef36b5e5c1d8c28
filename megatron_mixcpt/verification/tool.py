"""The program behind ``tools/verify_conversion.py``: flags, process groups, and what is printed."""

import argparse
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError, ConfigError, exit_on_user_error
from megatron_mixcpt.inference.parallel_groups import start_ranks
from megatron_mixcpt.verification.compare import TOLERANCES, ForwardComparison, compare_bits, compare_forward
from megatron_mixcpt.verification.preflight import check_hf_model

SAMPLE_TEXT = """The tides are caused by the gravitational pull of the Moon and, to a lesser degree, of the Sun. Twice a
day the sea rises along most coasts, and twice it falls; around new and full moon the two bodies pull in line, and the
range is greatest. Sailors kept tables of high water long before anyone could explain why the times shift by about fifty
minutes from one day to the next.

def high_waters(first, days, shift=timedelta(minutes=50)):
    \"\"\"Times of the first high water on each of `days` days.\"\"\"
    return [first + day * (timedelta(days=1) + shift) for day in range(days)]
"""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check a model folder and prove its conversion.")
    parser.add_argument("--hf-model", type=Path, required=True, help="Hugging Face model folder")
    parser.add_argument("--load", type=Path, help="Megatron checkpoint made from it; default: read --hf-model itself")
    parser.add_argument("--iteration", type=int, help="which iteration of --load; default: the latest")
    parser.add_argument("--text", type=Path, help="text to run the models on; default: a short sample")
    parser.add_argument("--num-tokens", type=int, default=256, help="tokens of it to use (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default: %(default)s")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1)
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1)
    parser.add_argument("--expert-model-parallel-size", type=int, default=1)
    parser.add_argument("--preflight-only", action="store_true", help="check the folder alone, run no model")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    """Check the folder, the bits and the forward pass; exit code 1 where one of them fails."""
    arguments = _parse()
    healthy = int(os.environ.get("RANK", "0")) != 0 or _check_on_disk(arguments)
    if arguments.preflight_only:
        sys.exit(not healthy)
    _start_ranks(arguments)
    dtype = getattr(torch, arguments.dtype)
    found = compare_forward(
        arguments.hf_model, _tokens(arguments), load_dir=arguments.load, iteration=arguments.iteration, dtype=dtype
    )
    if dist.get_rank() == 0:
        _print_forward(found, dtype)
    dist.destroy_process_group()
    sys.exit(not (healthy and found.passes(TOLERANCES[dtype])))


def _check_on_disk(arguments: argparse.Namespace) -> bool:
    hf_model = read_model_folder(arguments.hf_model)
    preflight = check_hf_model(hf_model)
    print(f"{hf_model.folder}: {hf_model.architecture.name}, {preflight.num_tensors} tensors, {hf_model.dtype}")
    for line in preflight.problems:
        print(f"  problem: {line}")
    for line in preflight.warnings:
        print(f"  warning: {line}")
    if arguments.load is None:
        return not preflight.problems
    bits = compare_bits(hf_model, MegatronCheckpoint(arguments.load, arguments.iteration))
    print(f"{arguments.load}: {bits.num_equal} tensors bit for bit, {len(bits.cast)} in another dtype", end="")
    print(f", {len(bits.different)} DIFFERENT: {', '.join(bits.different[:3])}" if bits.different else "")
    return not (preflight.problems or bits.different)


def _start_ranks(arguments: argparse.Namespace) -> None:
    layout = (
        arguments.tensor_model_parallel_size,
        arguments.pipeline_model_parallel_size,
        arguments.expert_model_parallel_size,
    )
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks != math.prod(layout):
        raise ConfigError(
            f"{num_ranks} processes for TP {layout[0]} x PP {layout[1]}: use torchrun with {math.prod(layout)}"
        )
    start_ranks(*layout)


def _tokens(arguments: argparse.Namespace) -> torch.Tensor:
    text = arguments.text.read_text(encoding="utf-8") if arguments.text else SAMPLE_TEXT
    tokenizer = AutoTokenizer.from_pretrained(arguments.hf_model, trust_remote_code=False)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: arguments.num_tokens]
    if not tokens:
        raise CheckpointError(f"{arguments.text} gives no tokens: name a file with text")
    return torch.tensor(tokens)


def _print_forward(found: ForwardComparison, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    first = found.first_difference(tolerance)
    where = "no layer differs" if first is None else f"FIRST DIFFERENCE in layer {first} (from 0)"
    print(f"forward in {str(dtype).removeprefix('torch.')}: {where}; worst layer {max(found.layers):.1e}", end="")
    print(f" (allowed {tolerance.hidden:.0e} of its largest value)")
    print(f"  logits   {found.logit:.1e} of the largest (allowed {tolerance.logit:.0e})")
    print(f"  KL       {found.kl:.1e} nats a token (allowed {tolerance.kl:.0e})")
    print(f"  top-1    {found.top1:.4f} agree (at least {tolerance.top1})")
    print("the same model" if found.passes(tolerance) else "NOT the same model")

"""The memory plan beside what training takes: tiny runs of the real trainer on CPU ranks, at several layouts.

    OMP_NUM_THREADS=1 python benchmarks/memory/measured.py
    OMP_NUM_THREADS=1 python benchmarks/memory/measured.py --layouts TP1 PP2

Measured is the most that torch's allocator had given out at once on a rank, from before the model is built to after the
second step, as the profiler records each allocation: what torch.cuda.max_memory_allocated() says on a GPU. The process
itself, its libraries and the communication library's own buffers are not in it.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mixcpt.flags import settings_from  # noqa: E402
from megatron_mixcpt.planning.layout import Layout  # noqa: E402
from megatron_mixcpt.planning.memory import plan_memory  # noqa: E402
from megatron_mixcpt.planning.shapes import model_shape  # noqa: E402
from megatron_mixcpt.testing import run_distributed  # noqa: E402

SEQ_LENGTH, GLOBAL_BATCH_SIZE = 256, 4
MODEL = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
MIXTURE = MODEL | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "head_dim": 32}
FULL_RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
# Name -> ranks, and what differs from the defaults, by the names that flags and the plan's layout share.
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP1": (1, {}),
    "TP1, no teacher": (1, {"alpha": 1.0}),
    "TP1, chunks of 64": (1, {"loss_chunk_tokens": 64}),
    "TP1, recomputed": (1, FULL_RECOMPUTE),
    "TP1, bf16": (1, {"bf16": True}),
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "TP2, sequence parallel": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "TP4, 2 query groups": (4, {"tensor_model_parallel_size": 4}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "PP2, chunks of 64": (2, {"pipeline_model_parallel_size": 2, "loss_chunk_tokens": 64}),
    "PP2 interleaved": (2, {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}),
    "DP2": (2, {}),
    "DP2, sharded optimizer": (2, {"use_distributed_optimizer": True}),
    "DP2, sharded, bf16": (2, {"use_distributed_optimizer": True, "bf16": True}),
    "CP2": (2, {"context_parallel_size": 2}),
    "CP2, bf16": (2, {"context_parallel_size": 2, "bf16": True}),
    "CP2, documents": (2, {"context_parallel_size": 2, "document_masking": True}),
    "CP2, selective": (2, {"context_parallel_size": 2, "recompute_activations": True}),
    "CP4": (4, {"context_parallel_size": 4}),
    "LoRA": (1, {"lora_rank": 8}),
    "LoRA, chunks of 64": (1, {"lora_rank": 8, "loss_chunk_tokens": 64}),
    "LoRA, recomputed": (1, {"lora_rank": 8, **FULL_RECOMPUTE}),
    "LoRA, bf16": (1, {"lora_rank": 8, "bf16": True}),
    "LoRA, TP2, sequence parallel": (2, {"lora_rank": 8, "tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "LoRA, PP2": (2, {"lora_rank": 8, "pipeline_model_parallel_size": 2}),
    "LoRA, DP2, sharded, bf16": (2, {"lora_rank": 8, "use_distributed_optimizer": True, "bf16": True}),
    "experts": (1, {}),
    "experts, LoRA": (1, {"lora_rank": 8, "lora_target_modules": "linear_qkv,linear_proj"}),
    "experts, EP2": (2, {"expert_model_parallel_size": 2}),
    "experts, EP2, sharded, bf16": (
        2,
        {"expert_model_parallel_size": 2, "use_distributed_optimizer": True, "bf16": True},
    ),
    "experts, TP2, ETP1": (
        2,
        {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 1},
    ),
}


def model_name(layout: str) -> str:
    """The folder of a layout's model: of those named after experts, a mixture of them."""
    return "qwen3-moe" if layout.startswith("experts") else "llama"


def make_world(root: Path) -> Path:
    """A random Llama and a Qwen3-MoE of these sizes, and a mixture for each, in ``root``, which is returned."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from tests.distributed.tiny_run import make_mixture
    from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

    LlamaForCausalLM(LlamaConfig(**MODEL)).save_pretrained(root / "llama")
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**MIXTURE)).save_pretrained(root / "qwen3-moe")
    for name in ("llama", "qwen3-moe"):
        save_tiny_tokenizer(root / name)
        make_mixture(root / f"{name}-mixture", root / name)
    return root


def planned(world: Path, name: str) -> list[int]:
    """The plan's peak of each rank, in bytes; ranks of a tensor or data parallel group take the same."""
    num_ranks, settings = LAYOUTS[name]
    shape = {"seq_length": SEQ_LENGTH, "global_batch_size": GLOBAL_BATCH_SIZE, "num_gpus": num_ranks}
    cpu = {"transformer_impl": "local", "gradient_accumulation_fusion": False}
    stages = plan_memory(model_shape(str(world / model_name(name))), settings_from(shape | cpu | settings, Layout))
    return [stage.peak for stage in stages for _ in range(num_ranks // len(stages))]


def measured(world: Path, name: str) -> list[int]:
    """The peak of each rank of a run of two steps, in bytes."""
    num_ranks, settings = LAYOUTS[name]
    with tempfile.TemporaryDirectory() as folder:
        arguments = flags(world, model_name(name), settings), folder
        run_distributed(train_and_write_peak, num_ranks, *arguments, cpu_emulation=True, timeout_s=240)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(num_ranks)]


def flags(world: Path, model: str, settings: dict[str, Any]) -> list[str]:
    """The trainer's command line."""
    argv = ["--hf-model", str(world / model), "--mixture", str(world / f"{model}-mixture"), "--train-iters", "2"]
    argv += ["--seq-length", str(SEQ_LENGTH), "--global-batch-size", str(GLOBAL_BATCH_SIZE), "--num-workers", "0"]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        argv += [flag] if value is True else [flag, str(value)]
    return argv


def train_and_write_peak(argv: list[str], folder: str) -> None:
    """On each rank: train, and leave the peak in ``folder``."""
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile

    from megatron_mixcpt.training.pretraining.cpt import main

    sys.stdout = open(os.devnull, "w")  # the table has the terminal to itself
    logging.disable()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        main(argv)
    peak = peak_bytes(recorded.profiler.kineto_results.experimental_event_tree())
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(peak))


def peak_bytes(events: list) -> int:
    """The most that was allocated at once, from the profiler's events.

    Blocks are told apart by address: threads that the profiler does not follow may free some of them, which shows when
    their address is given out again.
    """
    live: dict[int, int] = {}
    total = peak = 0
    for _, address, size in sorted(allocations(events), key=lambda item: item[0]):
        total -= live.pop(address, 0)
        if size > 0:
            live[address] = size
            total += size
            peak = max(peak, total)
    return peak


def allocations(events: list) -> Iterator[tuple[int, int, int]]:
    """Time in nanoseconds, address and size of each block given out; the size is negative where it is given back.

    What collectives allocate for themselves is left out: their own threads free it, unseen.
    """
    from torch._C._profiler import _EventType

    pending = list(reversed(events))
    while pending:
        event = pending.pop()
        if event.name.startswith(("c10d::", "gloo:")):
            continue
        pending += reversed(event.children)
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size


def main() -> None:
    """Print a row for each layout: the rank where the two differ most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    options = parser.parse_args()
    print("| layout | planned, MB a rank | measured | planned to measured |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        for name in options.layouts:
            pairs = zip(planned(world, name), measured(world, name), strict=True)
            plan, real = max(pairs, key=lambda pair: abs(pair[0] / pair[1] - 1))
            print(f"| {name} | {plan / 1e6:.1f} | {real / 1e6:.1f} | {plan / real - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()

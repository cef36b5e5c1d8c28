"""What documents kept apart cost: the layers' forward and backward with the document mask, beside causal attention."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from benchmarks.gpu import device
from benchmarks.gpu.checks.engine_models import build, document_mask_of, hidden_states, random_tokens
from benchmarks.gpu.context import Context
from benchmarks.gpu.worlds import random_world

MOST = 1.15


def cost(context: Context) -> None:
    """Four documents a sequence, in bfloat16."""
    folder, _ = random_world(context, context.sizes.llama_1b, "1b")
    model = build(folder, torch.bfloat16).train()
    for length in context.sizes.mask_lengths:
        tokens = random_tokens(folder, 1, length)
        starts = [length * part // 4 for part in range(4)]

        def step(masked: bool, tokens=tokens, starts=starts) -> None:
            mask = document_mask_of(starts, tokens, torch.bfloat16) if masked else None
            hidden_states(model, tokens, mask).float().sum().backward()

        calls = {"causal": lambda step=step: step(False), "masked": lambda step=step: step(True)}
        peaks = {name: peak_of(call) for name, call in calls.items()}
        times = device.in_turn(calls, context.sizes.repeats)
        note = f"{times['causal']:.1f} and {times['masked']:.1f} ms"
        ratio = times["masked"] / times["causal"]
        context.report.time(f"{length:,} tokens: masked to causal", ratio, MOST, "x", note=note)
        more, limit = peaks["masked"] - peaks["causal"], most_bytes(model.config, length)
        if device.on_cpu:
            context.report.measured(f"{length:,} tokens: more memory", more / 2**20, "MiB")
        else:
            context.report.at_most(f"{length:,} tokens: more memory", more / 2**20, limit / 2**20, "MiB")


def most_bytes(config: TransformerConfig, length: int) -> int:
    """Room for one mask and what makes it, and in each layer for keys and values repeated for every query head.

    Not for the scores of a layer's heads, nor at 8,192 tokens for a mask in each layer.
    """
    return 4 * length**2 + config.num_layers * length * config.hidden_size * 2 * 2


def peak_of(call) -> int:
    """The most memory that a call held."""
    call()
    torch.cuda.synchronize()
    device.reset_peak()
    call()
    torch.cuda.synchronize()
    return device.peak_bytes()

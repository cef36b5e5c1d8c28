"""The teacher's layers in host memory: the same bits, and what it takes at several microbatch sizes."""

import torch

from benchmarks.gpu.checks.engine_models import build, hidden_states, random_tokens
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import in_turn
from benchmarks.gpu.worlds import random_world
from megatron_mixcpt.distillation.offload import offload_layers


def _frozen(folder):
    model = build(folder, torch.bfloat16).eval()
    model.requires_grad_(False)
    return model


@torch.no_grad()
def same_bits(context: Context) -> None:
    """Several passes one after the other, so that each buffer is filled again while another layer runs."""
    folder, _ = random_world(context, context.sizes.llama_1b, "1b")
    model = _frozen(folder)
    batches = [random_tokens(folder, 1, context.sizes.seq_length, seed) for seed in range(4)]
    expected = [hidden_states(model, tokens).clone() for tokens in batches]
    offload_layers(model, model.decoder.layers, torch.cuda.current_device())
    actual = [hidden_states(model, tokens).clone() for tokens in batches * 2]
    equal = [torch.equal(*pair) for pair in zip(actual, expected * 2, strict=True)]
    context.report.holds(f"hidden states of {len(actual)} passes equal bit for bit", all(equal), f"equal: {equal}")


@torch.no_grad()
def speed(context: Context) -> None:
    """A forward pass of the teacher on the device, and from host memory."""
    folder, _ = random_world(context, context.sizes.llama_1b, "1b")
    resident, offloaded = _frozen(folder), _frozen(folder)
    layers = sum(parameter.nbytes for parameter in offloaded.decoder.layers.parameters())
    offload_layers(offloaded, offloaded.decoder.layers, torch.cuda.current_device())
    context.report.measured("bytes copied for each pass", layers / 2**30, "GiB")
    length = min(context.sizes.seq_length, min(context.sizes.offload_tokens))
    for num_tokens in context.sizes.offload_tokens:
        tokens = random_tokens(folder, num_tokens // length, length)
        calls = {
            "on the device": lambda tokens=tokens: hidden_states(resident, tokens),
            "from the host": lambda tokens=tokens: hidden_states(offloaded, tokens),
        }
        times = in_turn(calls, context.sizes.repeats)
        note = f"{times['on the device']:.1f} ms on the device, {times['from the host']:.1f} ms from the host"
        # Copying takes 49 ms at 40 GB/s and more: 2,048 tokens wait for it, 16,384 hide it.
        allowed = {2048: 7.0, 8192: 1.6}.get(num_tokens, 1.15)
        ratio = times["from the host"] / times["on the device"]
        context.report.time(f"{num_tokens:,} tokens, from the host to on the device", ratio, allowed, "x", note=note)

"""The engine's model beside transformers' own, causal and with documents kept apart; which attention kernels run."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu import device
from benchmarks.gpu.checks.engine_models import build, document_mask_of, hidden_states, positions, random_tokens
from benchmarks.gpu.context import Context
from benchmarks.gpu.reference import relative_error
from benchmarks.gpu.report import NotRunError
from benchmarks.gpu.worlds import random_world

LIMIT = 1e-4
MATH = "_scaled_dot_product_attention_math"


def llama_1b(context: Context) -> None:
    """At Llama-3.2-1B's shape, with random weights."""
    _compare(context, random_world(context, context.sizes.llama_1b, "1b")[0])


def smollm2(context: Context) -> None:
    """With SmolLM2-135M's weights, if its folder is given."""
    if context.smollm2 is None and not context.tiny:
        raise NotRunError("no folder of SmolLM2-135M: give it as --smollm2 (benchmarks/gpu/pack.sh packs it)")
    _compare(context, context.smollm2 or random_world(context, context.sizes.smollm2, "smollm2")[0])


def _compare(context: Context, folder: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    tokens = random_tokens(folder, 2, context.sizes.compared_tokens)
    starts = [0, tokens.size(1) // 3]
    causal, masked = expected_logits(folder, tokens, starts)
    with torch.no_grad():
        engine = build(folder, torch.float32).eval()
        mask_of_documents = document_mask_of(starts, tokens, torch.float32)
        for name, mask, expected in (("causal", None, causal), ("masked", mask_of_documents, masked)):
            actual = engine(tokens, positions(tokens), mask)
            context.report.at_most(f"logits, {name}, relative error", relative_error(actual, expected), LIMIT)
        del engine
    _attention_kernels(context, folder, starts)


def expected_logits(folder: Path, tokens: Tensor, starts: list[int]) -> tuple[Tensor, Tensor]:
    """Transformers' logits of the rows, and of each row's documents on their own, side by side; float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device.DEVICE).eval()
    ends = [*starts[1:], tokens.size(1)]
    with torch.no_grad():
        documents = [model(tokens[:, start:end]).logits for start, end in zip(starts, ends, strict=True)]
        return model(tokens).logits, torch.cat(documents, dim=1)


def _attention_kernels(context: Context, folder: Path, starts: list[int]) -> None:
    """A forward and backward pass in bfloat16, as training takes it, under the profiler."""
    model = build(folder, torch.bfloat16).train()
    tokens = random_tokens(folder, 1, context.sizes.seq_length)
    for name, mask in (("causal", None), ("masked", document_mask_of(starts, tokens, torch.bfloat16))):
        call = lambda mask=mask: hidden_states(model, tokens, mask).float().sum().backward()  # noqa: E731
        call()
        profile = device.profiled(call)
        operations = sorted(operation for operation in profile.operations if _is_attention(operation))
        kernels = sorted(kernel for kernel in profile.kernels if _is_attention(kernel))
        context.report.data[name] = {"operations": operations, "kernels": kernels}
        math = any(MATH in operation for operation in operations)
        shown = ", ".join(operation.removeprefix("aten::") for operation in operations)
        if device.on_cpu:  # which kernels a CPU has says nothing
            context.report.measured(f"{name}: attention", shown)
        else:
            context.report.holds(f"{name}: no math kernel, found {shown}", bool(operations) and not math, shown)


def _is_attention(name: str) -> bool:
    """Whether a kernel or an operation of torch is attention; autograd's own nodes only repeat its operations."""
    words = ("attention", "attn", "fmha", "flash", "sdpa")
    return "Backward0" not in name and any(word in name.lower() for word in words)

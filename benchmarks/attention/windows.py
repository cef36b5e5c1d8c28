"""A sliding window in blocks beside a dense mask and beside plain causal attention: time and memory of one layer.

    OMP_NUM_THREADS=1 python benchmarks/attention/windows.py
    OMP_NUM_THREADS=1 python benchmarks/attention/windows.py --tokens 8192 --windows 512 4096 --dtype bfloat16

`blocks` is what layers with a window compute (megatron_mixcpt/models/sliding_window.py), `dense mask` the same layer
given the window as a mask of s x s, `causal` a layer without a window. Each round runs the three in turn, forward and
backward; the times are medians over rounds after a first one, the memory is the most that torch had allocated at once
in a round, from before the forward pass on, the mask included. Without a GPU it is measured on the CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

if not torch.cuda.is_available():
    from megatron_mixcpt import cpu_emulation

    DEVICE = torch.device("cpu")
    cpu_emulation.install()
else:
    DEVICE = torch.device("cuda")

from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

from megatron_mixcpt.models.attention import ScaledDotProductAttention  # noqa: E402
from megatron_mixcpt.models.query_blocks import MASKED_SCORE  # noqa: E402


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--windows", type=int, nargs="+", default=[512])
    parser.add_argument("--heads", type=int, nargs=2, default=[8, 2], metavar=("QUERY", "KEY"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    print(f"{args.tokens} tokens, {args.heads[0]} heads of 64 in {args.heads[1]} groups, {args.dtype}, {DEVICE}")
    print(f"{'window':>6} {'':12} {'ms':>8} {'MB':>8}")
    for window in args.windows:
        inputs = [
            torch.randn(args.tokens, 1, heads, 64, dtype=dtype, device=DEVICE, requires_grad=True)
            for heads in (args.heads[0], args.heads[1], args.heads[1])
        ]
        ways = _ways(window, args.heads, inputs)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds + 1):
            for name, way in ways.items():
                times[name].append(_milliseconds(way))
        for name, way in ways.items():
            print(f"{window:6} {name:12} {statistics.median(times[name][1:]):8.0f} {_peak(way) / 1e6:8.1f}", flush=True)


def _ways(window: int, heads: list[int], inputs: list[torch.Tensor]) -> dict[str, Callable[[], None]]:
    def layer(**options: object) -> ScaledDotProductAttention:
        shape = {"num_layers": 1, "hidden_size": 64 * heads[0], "num_attention_heads": heads[0], "kv_channels": 64}
        config = TransformerConfig(**shape, num_query_groups=heads[1], attention_dropout=0.0, **options)
        return ScaledDotProductAttention(config, 1, AttnMaskType.causal, "self")

    def dense_mask() -> torch.Tensor:
        places = torch.arange(inputs[0].size(0), device=DEVICE)
        distance = places[:, None] - places
        mask = torch.zeros(distance.shape, dtype=inputs[0].dtype, device=DEVICE)
        return mask.masked_fill_((distance < 0) | (distance >= window), MASKED_SCORE)[None, None]

    def run(core: ScaledDotProductAttention, mask: Callable[[], torch.Tensor | None]) -> None:
        core(*inputs, mask()).sum().backward()
        for tensor in inputs:
            tensor.grad = None

    plain, windowed = layer(), layer(window_size=(window - 1, 0))
    return {
        "blocks": lambda: run(windowed, lambda: None),
        "dense mask": lambda: run(plain, dense_mask),
        "causal": lambda: run(plain, lambda: None),
    }


def _milliseconds(way: Callable[[], None]) -> float:
    _wait()
    start = time.perf_counter()
    way()
    _wait()
    return 1e3 * (time.perf_counter() - start)


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _peak(way: Callable[[], None]) -> int:
    """The most bytes allocated at once beyond what was there before."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        way()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()

"""The checks of the kit: what each compares with what, at which size, what is expected, and how long it may take.

A check is a function of ``benchmarks/gpu/checks``, named ``module:function``. What is measured is taken with 2,048
tokens a microbatch in bfloat16 unless a row says otherwise; expectations are of an H100 SXM (80 GB), whose copy moved
3.0 TB/s and whose 8,192-cubed product ran at 798 TFLOP/s.
"""

from dataclasses import dataclass

PART_LIMIT_S = 530
"""Seconds for each of the parts a, b and c: a machine that is lent by the command gives ten minutes to each."""
RANKS_LIMIT_S = 1500
LIMITS_S = {"a": PART_LIMIT_S, "b": PART_LIMIT_S, "c": PART_LIMIT_S, "ranks": RANKS_LIMIT_S}


@dataclass(frozen=True)
class Check:
    """One row of the list."""

    name: str
    part: str
    title: str
    size: str
    reference: str
    expected: str
    limit_s: int
    """Seconds after which it is stopped and counts as wrong."""
    function: str
    """``module:function`` in ``benchmarks/gpu/checks``."""


_A = [
    ("ceilings", "Ceilings of the card; driver, libraries, Transformer Engine, Apex", "copy of 8 GB; product of 8,192 "
     "cubed", "such a card, measured before", "3.0 TB/s; 798 TFLOP/s", 90, "ceilings:measure"),
    ("loss", "Loss and gradient; poisoned outputs, fresh inputs, compilations", "512 x 49,152; 128,256; 152,064; "
     "151,936 of 152,064 columns", "dense, float64", "loss 1e-5; gradient 1.0 x rounding; <= 3 compilations a pass and "
     "vocabulary", 150, "loss:gradients"),
    ("loss-int64", "Loss and gradient where offsets need 64 bits", "17,408 x 128,256", "dense, float64", "as above",
     120, "loss:beyond_int32"),
    ("fused-linear", "Loss from hidden states in chunks, gradients of hidden states and weight", "2,048 x 2,048 x "
     "128,256", "dense, float64", "relative 1e-2, that of bfloat16 products", 90, "fused_linear:gradients"),
    ("experts", "Experts' product in one call, uneven rows: result, gradients, no wait for the device", "8 experts, "
     "744 rows, 512 to 256 columns; float32, bfloat16", "expert by expert, float64", "1e-4; 1e-2; none without rows",
     60, "experts:grouped"),
    ("hidden-waits", "No wait for the device in forward, loss and backward", "tiny; lssd, chunks, document masking, "
     "offload", "torch's sync debug mode", "none", 120, "hidden_waits:count"),
    ("engine-1b", "Engine against transformers, causal and masked; attention kernels", "Llama-3.2-1B's shape, random",
     "transformers, float32 without TF32", "1e-4; no math kernel", 150, "beside_transformers:llama_1b"),
    ("engine-smollm2", "Engine against transformers, causal and masked; attention kernels", "SmolLM2-135M",
     "transformers, float32 without TF32", "1e-4; no math kernel", 90, "beside_transformers:smollm2"),
    ("curves", "Six training steps: lssd, kd, l2, half, chunks, offload, masking, SFT, DPO", "tiny world, float32",
     "CPU curves, carried along", "1e-4", 200, "curves:all_trainers"),
    ("offload-bits", "A teacher in host memory gives the same bits", "Llama-3.2-1B's shape", "itself on the device",
     "equal", 90, "offload:same_bits"),
    ("resume", "A deterministic run, and its resumption, twice", "tiny world", "itself", "equal bits", 150,
     "resume:twice"),
]  # fmt: skip
_B = [
    ("loss-speed", "Loss alone, forward and backward; the engine's cross-entropy, ModelOpt, TRL and the loss as "
     "written", "2,048 and 8,192 x 49,152; 128,256; 152,064", "bytes / copy rate", "<= 1.4 x floor (0.88 ms at 2,048 x "
     "128,256); < half of cross-entropy and KL from parts", 140, "loss_speed:beside_peers"),
    ("fused-linear-speed", "Loss in chunks of 512 to 4,096 tokens; Liger's fused linear losses", "8,192 x 2,048 x "
     "128,256", "17.2 TFLOP", "31 ms of products; chunks of 2,048: +3.5 ms", 90, "fused_linear:speed"),
    ("mask", "Document mask against causal attention: time and memory", "Llama-3.2-1B's shape; 2,048 and 8,192 tokens",
     "causal run", "<= +15%; memory of one mask, not of scores", 110, "mask:cost"),
    ("offload-speed", "Teacher's forward from host memory", "Llama-3.2-1B's shape; 2,048, 8,192, 16,384 tokens",
     "49 ms of copies beside 9.8, 39, 78 ms", "hidden from 11,000 tokens", 90, "offload:speed"),
    ("step-1b", "Training step: engine, none, half, lssd, chunks; a plain transformers loop", "Llama-3.2-1B's shape, "
     "microbatch 1, 2, 4", "21.3 TFLOP (none 16.0)", "48-61 ms at 35-45% (39 at 55%); lssd to none 1.33-1.36; half "
     "1.17; below the loop", 260, "step:llama_1b"),
    ("profile", "Profile of a step", "Llama-3.2-1B's shape", "-", "idle < 5%; <= 2 host waits", 110, "step:profile"),
    ("memory", "Peak memory against the plan", "Llama-3.2-1B's shape: 23.0 GiB of state", "tools/plan.py",
     "within 10%", 110, "step:memory"),
    ("step-smollm2", "Training step of a small model: the same", "SmolLM2-135M's shape, microbatch 1",
     "2.8 TFLOP", "5 ms of products; host-bound above 20 ms", 100, "step:smollm2"),
]  # fmt: skip
_C = [
    ("te-curves", "With Transformer Engine: curves of lssd, kd, half, chunks, offload", "tiny world, bfloat16",
     "layers without it", "1e-2", 200, "transformer_engine:curves"),
    ("te-packed", "With Transformer Engine: packed documents", "tiny world, bfloat16", "dense mask without it", "1e-2",
     120, "transformer_engine:packed_documents"),
    ("te-no-apex", "With Transformer Engine and without Apex: starts, and says which fusion it has", "tiny world",
     "-", "starts", 90, "transformer_engine:without_apex"),
    ("te-fp8", "--teacher-fp8: the teacher's share of a step", "Llama-3.2-1B's shape", "the same in bfloat16",
     "share shrinks, perhaps to 0.65 x; loss within 1e-2", 200, "transformer_engine:fp8_teacher"),
    ("te-step-1b", "With Transformer Engine: step and memory", "Llama-3.2-1B's shape, microbatch 1", "21.3 TFLOP",
     "39 ms at 55%", 120, "transformer_engine:step"),
]  # fmt: skip
_RANKS = [
    ("ranks-curves", "TP2, PP2, interleaved, CP2, DP2 with both overlaps, chunks with overlap", "tiny world, float32",
     "one-rank CPU curve, carried along", "1e-4", 400, "ranks:curves"),
    ("ranks-context-parallel", "Context parallelism with document masking is refused with Transformer Engine",
     "tiny world", "-", "one line", 120, "ranks:context_parallel"),
    ("ranks-async-save", "Async save, and its resumption", "tiny world, DP2, sharded optimizer", "the same, saved "
     "synchronously", "equal curves", 240, "ranks:async_save"),
    ("ranks-sigterm", "SIGTERM to torchrun in mid-run", "tiny world, TP2", "the undisturbed curve", "a checkpoint, and "
     "the rest of the curve", 240, "ranks:sigterm"),
    ("ranks-speed", "Step of none and lssd at TP2, PP2, DP2", "Llama-3.2-1B's shape, 4 microbatches",
     "none", "lssd to none <= 1.36", 400, "ranks:speed"),
    ("ranks-messages", "Bytes between pipeline stages", "tiny world, PP2", "the student's hidden states",
     "forward 2 x, back 1 x", 120, "ranks:messages"),
]  # fmt: skip
CHECKS = [
    Check(name, part, title, size, reference, expected, limit_s, function)
    for part, rows in (("a", _A), ("b", _B), ("c", _C), ("ranks", _RANKS))
    for name, title, size, reference, expected, limit_s, function in rows
]


def checks_of(parts: list[str], names: list[str] | None = None) -> list[Check]:
    """Those of these parts, in order; with ``names`` only the named."""
    return [check for check in CHECKS if check.part in parts and (not names or check.name in names)]


def listed() -> str:
    """The list for people."""
    lines = []
    for check in CHECKS:
        lines += [
            f"{check.part:5} {check.name}: {check.title}",
            f"      size: {check.size} | reference: {check.reference}",
            f"      expected: {check.expected} | limit: {check.limit_s} s",
        ]
    return "\n".join(lines)

"""Every trainer with Transformer Engine as it is: everything works up to the first forward of one of its modules.

There it ends, without a GPU, with a line of Transformer Engine's own. Arguments, layers, weights, gradient buffers,
optimizers, datasets and batches are then made as on a GPU.
"""

from pathlib import Path

import pytest

from tests.distributed import test_alignment_training
from tests.distributed.tiny_run import flags, make_world
from tests.transformer_engine.runs import last_words
from tests.transformer_engine.test_training import PP2, RECOMPUTED, SHARDED, TP2_SP

LAST_LINE = "RuntimeError: TransformerEngine needs CUDA. Got input on device: cpu"
TRAINERS = {
    "lssd": ("cpt", ()),
    "kd": ("cpt", ("--distillation", "kd")),
    "l2": ("cpt", ("--distillation", "l2")),
    "none": ("cpt", ("--distillation", "none")),
    "sft": ("sft", ()),
    "dpo": ("dpo", ()),
}
LAYOUTS = {
    "one rank, recomputed": (1, (*RECOMPUTED, "--bf16")),
    "TP2+SP": (2, (*TP2_SP, "--bf16")),
    "PP2, sharded, overlapping": (2, (*PP2, *SHARDED, "--bf16")),
    "PP2 interleaved": (2, (*PP2, "--num-virtual-stages-per-pipeline-rank", "2")),
    "DP2, sharded": (2, (*SHARDED, "--bf16")),
}
OF_PRETRAINING = {
    "CP2": (2, ("--context-parallel-size", "2", "--bf16")),
    "document masking": (1, ("--document-masking",)),
}
OF_DISTILLATION = {
    "offload, chunks": (1, ("--teacher-offload", "cpu", "--loss-chunk-tokens", "16", "--bf16")),
    "PP2, offload, chunks": (2, (*PP2, "--teacher-offload", "cpu", "--loss-chunk-tokens", "16")),
}
CASES = [
    *((trainer, layout, LAYOUTS[layout]) for trainer in TRAINERS for layout in LAYOUTS),
    *((trainer, layout, OF_PRETRAINING[layout]) for trainer in ("lssd", "none") for layout in OF_PRETRAINING),
    *((trainer, layout, OF_DISTILLATION[layout]) for trainer in ("lssd", "kd") for layout in OF_DISTILLATION),
]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    aligned = test_alignment_training.world.__wrapped__(tmp_path_factory)
    return {"cpt": make_world(tmp_path_factory.mktemp("world")), "sft": aligned, "dpo": aligned}


@pytest.mark.parametrize(("trainer", "layout", "case"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_it_gets_as_far_as_a_machine_without_a_gpu_can(
    trainer: str, layout: str, case: tuple, worlds: dict[str, Path], tmp_path: Path
) -> None:
    stage, own = TRAINERS[trainer]
    num_ranks, more = case
    shared = (
        flags(worlds[stage], "qwen2" if "PP2" in layout else "llama", iterations=1)
        if stage == "cpt"
        else test_alignment_training.flags(worlds[stage], stage)
    )
    # ranks that wait for one that has failed end with an error of their own, or are ended
    assert LAST_LINE in last_words(num_ranks, stage, [*shared, *own, *more], tmp_path)

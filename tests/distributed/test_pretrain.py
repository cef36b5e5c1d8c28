"""Student and teacher through the real training entry at every layout, against transformers and a dense loss.

The reference shares nothing with the package but the order of the samples. Float32 everywhere: losses differ by the
order of sums alone, which gives 1e-6 here in one iteration; the tolerances are those promised to users.
"""

from functools import cache
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.dense_iteration import KINDS, expected_first_iteration
from tests.distributed.tiny_run import GLOBAL_BATCH_SIZE, SEQ_LENGTH, flags, make_world, train

TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
TP3 = ["--tensor-model-parallel-size", "3"]
PP2 = ["--pipeline-model-parallel-size", "2"]
LAYOUTS = {
    "TP2+SP": (2, [*TP2_SP, "--make-vocab-size-divisible-by", "128"]),  # 385 tokens in 512 rows
    "PP2": (2, PP2),
    "TP2xPP2": (4, [*TP2_SP[:2], *PP2]),
    "PP2 interleaved": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
    "TP3": (3, TP3),
    "CP2": (2, ["--context-parallel-size", "2", "--recompute-activations"]),
    "DP2 distributed optimizer": (2, ["--use-distributed-optimizer"]),
}
STATISTICS = {"top-1 agreement", "teacher top-1 probability", "student top-1 probability"}
KEYS = {"loss", "ntp loss", "lssd loss", "swapped fraction", "tokens per second"} | STATISTICS
KEYS |= {f"lssd loss {kind}" for kind in KINDS}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def single(world: Path, tmp_path_factory: pytest.TempPathFactory):
    """Curves on one rank, by architecture and further flags."""

    @cache
    def run(architecture: str, *more: str, iterations: int = 20) -> dict[str, list[float]]:
        return train(1, [*flags(world, architecture, iterations=iterations), *more], tmp_path_factory.mktemp("log"))

    return run


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_first_iteration_is_that_of_transformers(architecture: str, world: Path, single) -> None:
    curves = single(architecture)
    assert "teacher entropy" not in curves
    for key, expected in expected_first_iteration(world, architecture).items():
        if key == "teacher entropy":  # on request only
            continue
        assert curves[key][0] == pytest.approx(expected, rel=2e-4), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree(layout: str, world: Path, single, tmp_path: Path) -> None:
    world_size, more = LAYOUTS[layout]
    # Each layout with one architecture; tied embeddings matter where there are two pipeline stages.
    architecture = "qwen2" if layout in ("TP3", "TP2+SP") else "llama"
    curves = train(world_size, [*flags(world, architecture, iterations=20), *more], tmp_path)
    expected = single(architecture)
    for key in KEYS - {"tokens per second"}:
        assert curves[key] == pytest.approx(expected[key], rel=1e-3), key
    assert curves["ntp loss"][-1] < curves["ntp loss"][0] - 0.1  # the documents are random: little to learn
    # All ranks' tokens over the wall time. One rank's would be half of it at most, or twice.
    seconds = sum(GLOBAL_BATCH_SIZE * SEQ_LENGTH / speed for speed in curves["tokens per second"][1:])
    assert seconds == pytest.approx(seconds_of(tmp_path), rel=0.4)


def seconds_of(log_dir: Path) -> float:
    """Wall time from the first iteration's entry in TensorBoard to the last one's."""
    events = EventAccumulator(str(log_dir)).Reload().Scalars("loss")
    return events[-1].wall_time - events[0].wall_time


def test_reported_keys(single) -> None:
    engine = {"learning-rate", "batch-size", "grad-norm", "loss-scale"}
    reported = {key for key in single("llama") if not key.endswith(" vs samples")}
    assert KEYS <= reported
    assert reported - KEYS - engine == set()

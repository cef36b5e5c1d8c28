"""The loss straight from the hidden states trains as the loss of all logits does, whatever holds the output weight."""

from functools import cache
from pathlib import Path

import pytest

from tests.distributed.tiny_run import flags, make_world, train

# Tied output weights at one rank and on two stages, where the engine adds up the gradients of both copies; untied ones,
# whose hidden states are split along the sequence. 24 does not divide a microbatch's 64 tokens. With overlap the output
# weight, in a bucket of its own as in a large model, is gathered while the layers before it run.
IN_CHUNKS = ["--loss-chunk-tokens", "24"]
OVERLAP = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather", "--ddp-bucket-size=2000"]
CASES = {
    "tied": ("llama", 1, []),
    "tied, PP2, DP2, overlap": ("llama", 4, ["--pipeline-model-parallel-size", "2", *OVERLAP]),
    "untied, TP2+SP": ("qwen2", 2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"]),
    "untied, DP2, overlap": ("qwen2", 2, OVERLAP),
}
KEYS = ("loss", "ntp loss", "lssd loss", "swapped fraction", "grad-norm", "params-norm")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def all_logits(world: Path, tmp_path_factory: pytest.TempPathFactory):
    """Curves of a run on one rank that holds all logits, by architecture."""
    return cache(lambda architecture: train(1, argv(world, architecture), tmp_path_factory.mktemp("log")))


def argv(world: Path, architecture: str) -> list[str]:
    return [*flags(world, architecture, iterations=6), "--log-params-norm"]


@pytest.mark.parametrize("case", CASES)
def test_same_losses_gradients_and_weights(case: str, all_logits, world: Path, tmp_path: Path) -> None:
    architecture, world_size, layout = CASES[case]
    curves = train(world_size, [*argv(world, architecture), *IN_CHUNKS, *layout], tmp_path)
    # With overlap the engine logs the weights' norm before the other ranks' weights have arrived.
    for key in [key for key in KEYS if layout[-len(OVERLAP) :] != OVERLAP or key != "params-norm"]:
        # Float32 sums in another order give 1e-6 in an iteration; Adam, which divides small gradients by their own
        # size, makes more of it in the next ones.
        assert curves[key] == pytest.approx(all_logits(architecture)[key], rel=1e-4), key

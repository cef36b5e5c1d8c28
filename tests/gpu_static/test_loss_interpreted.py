"""The kernels that an H100 would get, run in Triton's interpreter, give the losses computed without a compiler."""

from tests.gpu_static.fake_h100 import requires_triton
from tests.gpu_static.interpreted import run

pytestmark = requires_triton


def test_interpreted_kernels_equal_the_uncompiled_losses() -> None:
    results = run("bfloat16, padded", "loss function")
    functions = [function.split(".")[0] for function in results["bfloat16, padded"][2]]
    assert functions == ["_divergence_reader", "_losses", "_gradient_rows", "_gradient_writer", "_overwriter"]
    assert results["loss function"][2] == ["_summing.compute"]

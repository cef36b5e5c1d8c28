"""The loss's kernels as Inductor writes them and ptxas builds them for an H100 (sm_90), without one.

``python -m tests.gpu_static.loss_figures`` prints what is counted here.
"""

from typing import Any

import pytest

from tests.gpu_static.fake_h100 import in_own_process, requires_triton
from tests.gpu_static.loss_figures import TOKEN_COUNTS, Figures, compilations, figures

pytestmark = requires_triton

FORWARD, BACKWARD = "_divergence_reader.read", "_gradient_writer.write"


@pytest.fixture(scope="module")
def counted() -> dict[str, Figures]:
    """Compiled and built once for all tests; each function compiles without a graph break, or raises."""
    return in_own_process(figures, False, compiles=True, timeout_s=280)


def test_a_microbatch_is_a_handful_of_kernels(counted: dict[str, Figures]) -> None:
    """Where the arithmetic per token was 285 kernels, and the loss function's 69."""
    lssd = counted["lssd"]
    assert lssd.kernels(FORWARD) <= 5 and lssd.kernels(BACKWARD) == 1
    assert lssd.launches <= 18
    assert counted["cross-entropy"].launches <= 15
    assert counted["loss function"].launches <= 16
    for figure in counted.values():
        figure.watch.check()


@pytest.mark.parametrize("case", ["lssd", "padded", "float32"])
def test_passes_over_the_logits_load_16_bytes_and_spill_nothing(case: str, counted: dict[str, Figures]) -> None:
    built = counted[case].built
    # The blocks of 1,024 columns, and the rest, which is shorter; then come kernels over the blocks' results.
    blocks, (writer,) = [kernel for kernel in built[FORWARD] if 16 in kernel.load_bytes], built[BACKWARD]
    assert len(blocks) == (1 if case == "float32" else 2)
    for kernel in blocks:
        assert set(kernel.load_bytes) == {16} and not kernel.has_loop
        # Each logit of both models is loaded once: registers hold a block between its maximum and its sum.
        item = 4 if case == "float32" else 2
        assert kernel.load_bytes[16] * 16 == 2 * kernel.elements_per_thread * item
        assert kernel.instructions / kernel.elements_per_thread < 45
    item = 4 if case == "float32" else 2
    assert writer.load_bytes[16] * 16 == 2 * writer.elements_per_thread * item
    assert writer.store_bytes == {16: writer.elements_per_thread * item // 16}
    assert not writer.has_loop and not writer.divides
    assert writer.instructions / writer.elements_per_thread < 70
    for kernel in [*built[FORWARD], writer]:
        assert kernel.spills == 0, kernel
        assert kernel.index_type <= {"i32", "i64"}


def test_cross_entropy_loads_16_bytes_too(counted: dict[str, Figures]) -> None:
    built = counted["cross-entropy"].built
    for function, kernels in built.items():
        assert all(kernel.spills == 0 for kernel in kernels), function
    (writer,) = built["_cross_entropy_gradient_writer.write"]
    assert writer.load_bytes[16] * 16 == writer.elements_per_thread * 2 == writer.store_bytes[16] * 16


def test_one_compilation_serves_all_token_counts() -> None:
    """One more from 2^31 logits on, whose indices are of 64 bits."""
    found: dict[str, list[tuple[int, set[str]]]] = in_own_process(compilations, compiles=True, timeout_s=280)
    assert len(TOKEN_COUNTS) == 7
    for function in (FORWARD, BACKWARD):
        compiled: list[tuple[int, Any]] = found[function]
        assert [tokens for tokens, _ in compiled] == [2048, 17_408], compiled
        (_, narrow), (_, wide) = compiled
        assert narrow == {"i32"} and "i64" in wide, compiled
    assert all(len(compiled) <= 2 for compiled in found.values()), found

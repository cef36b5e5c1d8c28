"""An adapter on two tensor-parallel ranks, beside the product written out."""

from megatron_mixcpt.testing import run_distributed


def test_an_adapter_is_the_product_whatever_is_divided() -> None:
    run_distributed(check_adapters, 2, cpu_emulation=True)


def check_adapters() -> None:
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(2)
    model_parallel_cuda_manual_seed(3)
    torch.manual_seed(3)
    for side in ("column", "row"):
        for sequence_parallel in (False, True):
            check_values_and_gradients(side, sequence_parallel)
    check_dropout_is_the_same_on_both_ranks()


def build(side: str, sequence_parallel: bool, dropout: float = 0.0):
    """This rank's part of an adapter of a layer of 6 inputs and 4 outputs, and A [2, 6] and B [4, 2] of the whole."""
    import torch
    from megatron.core import parallel_state

    from megatron_mixcpt.adapters.low_rank import LowRank
    from megatron_mixcpt.adapters.settings import LoRASettings

    group, rank = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_tensor_model_parallel_rank()
    settings = LoRASettings(lora_rank=2, lora_dropout=dropout)
    a, b = torch.randn(2, 6), torch.randn(4, 2)
    shape = (2, 6) if side == "column" else (4, 3)
    adapter = LowRank(torch.empty(shape), side, settings, group, sequence_parallel=sequence_parallel)
    with torch.no_grad():
        adapter.lora_a.copy_(a if side == "column" else a.chunk(2, 1)[rank])
        adapter.lora_b.copy_(b.chunk(2)[rank] if side == "column" else b)
    return adapter, a.requires_grad_(), b.requires_grad_(), rank


def check_values_and_gradients(side: str, sequence_parallel: bool) -> None:
    """[s, b, 6] to [s, b, 4]; what ranks have copies of sees a part of the sequence, and the engine adds it up."""
    import torch
    import torch.distributed as dist

    adapter, a, b, rank = build(side, sequence_parallel)
    whole = torch.randn(8, 1, 6)
    expected = whole @ a.T @ b.T
    expected.sin().sum().backward()
    part = whole if side == "column" else whole.chunk(2, 2)[rank]
    if sequence_parallel and side == "column":
        part = whole.chunk(2)[rank]
    output = adapter(part)
    wanted = expected.chunk(2, 2)[rank] if side == "column" else expected
    if sequence_parallel and side == "row":
        wanted = expected.chunk(2)[rank]
    torch.testing.assert_close(output, wanted.detach())
    output.sin().sum().backward()

    divided, copied = (adapter.lora_b, adapter.lora_a) if side == "column" else (adapter.lora_a, adapter.lora_b)
    gradient, of_copied = (b.grad.chunk(2)[rank], a.grad) if side == "column" else (a.grad.chunk(2, 1)[rank], b.grad)
    torch.testing.assert_close(divided.grad, gradient)
    assert copied.sequence_parallel == sequence_parallel and divided.tensor_model_parallel
    if sequence_parallel:
        dist.all_reduce(copied.grad)
    torch.testing.assert_close(copied.grad, of_copied)


def check_dropout_is_the_same_on_both_ranks() -> None:
    """Both read the same input of a column-parallel layer, and have a copy of A: they must drop the same of it."""
    import torch
    import torch.distributed as dist

    adapter, *_ = build("column", sequence_parallel=False, dropout=0.5)
    adapter(torch.ones(8, 1, 6)).sum().backward()
    other = adapter.lora_a.grad.clone()
    dist.broadcast(other, src=0)
    assert torch.equal(adapter.lora_a.grad, other)
    assert len(adapter.lora_a.grad.unique()) > 2, "nothing was dropped"

"""``--iterations-to-skip``: every rank takes the whole batch, each chunk of an interleaved pipeline its own."""

from argparse import Namespace

from megatron_mixcpt.testing import run_distributed


def test_a_skipped_batch_is_taken_whole() -> None:
    run_distributed(check_skipping, 2, cpu_emulation=True)


def check_skipping() -> None:
    """Four microbatches on the second rank of two as well, which has no part in the engine's own skipping."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.rerun_state_machine import RerunDataIterator, RerunMode, initialize_rerun_state_machine
    from megatron.training import training

    from megatron_mixcpt.training.engine.patches import change_engine
    from megatron_mixcpt.training.engine.repairs import repairs

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    init_num_microbatches_calculator(0, None, 4, 1, 1)
    initialize_rerun_state_machine(mode=RerunMode.DISABLED)
    change_engine(repairs(Namespace(async_save=False)))
    one, two = RerunDataIterator(iter(range(10))), RerunDataIterator(iter(range(10)))
    training.dummy_train_step(one)
    assert next(one) == 4
    training.dummy_train_step([one, two])
    assert (next(one), next(two)) == (9, 4)

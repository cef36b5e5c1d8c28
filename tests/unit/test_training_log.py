"""What is read of a run's TensorBoard files: a run that was killed and resumed wrote some steps twice."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from megatron_mixcpt.training_log import read_log


def write(folder: Path, steps: range, factor: float, began_s: float) -> None:
    with SummaryWriter(folder) as writer:
        for step in steps:
            writer.add_scalar("lm loss", factor * step, step, walltime=began_s + step)


def test_of_a_step_that_was_logged_twice_the_later_value_counts(tmp_path: Path) -> None:
    write(tmp_path, range(1, 5), 1.0, began_s=1000.0)
    write(tmp_path, range(3, 6), 10.0, began_s=2000.0)
    assert read_log(tmp_path).curves == {"lm loss": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]}

"""A number of ranks that no model fits is refused. Groups are started in ``tests/distributed/test_evaluate.py``."""

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.inference.parallel_groups import start_ranks


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 1), "TP 2 x PP 1 needs 2 processes or a multiple, not 3: use torchrun"),
        ((1, 2, 2), "TP 1 x PP 2 x EP 2 needs 4 processes or a multiple, not 3: use torchrun"),
    ],
)
def test_ranks_that_make_no_complete_model(
    sizes: tuple[int, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=message):
        start_ranks(*sizes)

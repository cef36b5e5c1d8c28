"""The indices that the engine keeps in a cache: complete, or absent.

The engine writes the files under their names, one after the other and without flushing them, and takes whatever has the
names at the next start: after a power failure, files without content or with zeros in its place, which fail or, worse,
name samples. Here it writes beside them, and each file gets its name once all are on the disk, the description last:
without it the engine builds them anew.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from numpy import ndarray

from megatron_mixcpt.jobs.whole_outputs import make_folder, publish


def builds_indices() -> bool:
    """Whether this process builds what is not in the cache: the first rank, as in the engine."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def whole_indices(config: GPTDatasetConfig, name: str) -> Iterator[None]:
    """While the engine builds a dataset's indices, those that are called ``name`` and are not in the cache yet.

    ``config.path_to_cache`` is **changed** inside the block. Raises OSError where they cannot be written.
    """
    cache = Path(config.path_to_cache)
    if not builds_indices() or (cache / f"{name}-description.txt").is_file():
        yield
        return
    make_folder(cache)
    with tempfile.TemporaryDirectory(prefix=".indices-", dir=cache) as aside:
        config.path_to_cache = aside
        try:
            yield
        finally:
            config.path_to_cache = str(cache)
        for path in sorted(Path(aside).iterdir(), key=lambda path: path.suffix == ".txt"):
            publish(path, cache / path.name)


class WholeBlendedDataset(BlendedDataset):
    """The engine's blend of datasets."""

    def _build_indices(self) -> tuple[ndarray, ndarray]:
        """Which dataset each sample is of, and which of its samples it is."""
        with whole_indices(self.config, f"{self.unique_description_hash}-{type(self).__name__}-{self.split.name}"):
            return super()._build_indices()

"""Passes over a dataset that come one after the other, each in an order of its own.

The engine shuffles the documents of all passes together, but for a last one that is not complete, and so does it with
the sequences that it cuts from them: some would be seen twice before others are seen at all. Here each pass shuffles
the documents anew. The passes are still laid end to end and cut as one, so that nothing is left over between them: the
sequence that crosses a border belongs to the pass in which it begins, and ends with documents of the next.
"""

from pathlib import Path

import numpy as np
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_mixcpt.data.datasets.whole_indices import builds_indices, whole_indices
from megatron_mixcpt.jobs.whole_outputs import make_folder, open_whole

_INDICES = ("document_index", "sample_index", "shuffle_index")


class PassesDataset(GPTDataset):
    """The engine's dataset, of which sample ``i`` is in an earlier pass than sample ``j > i``, or in the same.

    With one pass it is the engine's own, to the order.
    """

    def _build_document_sample_shuffle_indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The order of documents, int32; where each sequence begins, [n + 1, 2]; the order of sequences.

        They are kept in the cache, written by the first rank alone, and mapped.
        """
        num_tokens = self._get_num_tokens_per_epoch()
        num_passes = self._get_num_epochs(num_tokens)
        start = f"{self.unique_description_hash}-{type(self).__name__}-{self.index_split.name}"
        if num_passes == 1:
            with whole_indices(self.config, start):
                return super()._build_document_sample_shuffle_indices()
        paths = [Path(self.config.path_to_cache) / f"{start}-{name}.npy" for name in _INDICES]
        if builds_indices() and not all(path.is_file() for path in paths):
            make_folder(paths[0].parent)
            for path, index in zip(paths, self._ordered(num_passes, num_tokens), strict=True):
                with open_whole(path) as file:
                    np.save(file, index)
        documents, starts, order = (np.load(path, mmap_mode="r") for path in paths)
        return documents, starts, order

    def _ordered(self, num_passes: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from megatron.core.datasets import helpers  # a source install compiles it when training starts

        random, length = np.random.RandomState(self.config.random_seed), self.config.sequence_length
        documents = np.concatenate([random.permutation(self.indices) for _ in range(num_passes)]).astype(np.int32)
        sizes = np.array(self.dataset.sequence_lengths)
        starts = helpers.build_sample_idx(sizes, documents, length, num_passes, num_tokens, True, True)
        num_sequences = len(starts) - 1
        borders = [min(-(-number * num_tokens // length), num_sequences) for number in range(num_passes)]
        ends = [*borders[1:], num_sequences]
        order = [first + random.permutation(end - first) for first, end in zip(borders, ends, strict=True)]
        return documents, starts, np.concatenate(order).astype(np.int64)

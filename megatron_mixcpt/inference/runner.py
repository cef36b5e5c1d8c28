"""Log-probabilities of tokens from the engine's model, forward only, at any TP x PP x CP x DP.

Logits stay split over the tensor-parallel ranks: a token's log-probability takes one all-gather of 12 bytes per rank.
Each data-parallel rank runs its share of the batches. Context-parallel ranks, which only the trainers make, share each
batch's sequences.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.nn.functional import pad

from megatron_mixcpt.inference.batches import (
    IGNORED,
    ScoredSequence,
    TokenBatch,
    idle_batch,
    make_batch,
    padded_length,
    plan_batches,
)
from megatron_mixcpt.inference.engine_model import forward_through_stages, logit_scaling
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.inference.parallel_groups import start_ranks
from megatron_mixcpt.losses.dpo import vocab_parallel_log_probs
from megatron_mixcpt.models.context_parallel import share_of_sequence


class ForwardRunner:
    """A model in memory, spread over the ranks that torchrun started. All ranks call every method together."""

    def __init__(self, source: ModelSource, dtype: torch.dtype = torch.bfloat16):
        """Read this rank's weights, in ``dtype``, the computation's too; the ranks must have started."""
        self._vocab_size = source.plan.vocab_size
        rope = source.plan.options.rope
        self._table_length = rope.table_length if rope else lambda length: None
        self._model = source.build(dtype)
        self._device = next(self._model.parameters()).device
        self._tp_group = parallel_state.get_tensor_model_parallel_group()
        self._tp_rank = parallel_state.get_tensor_model_parallel_rank()
        self._cp_group = parallel_state.get_context_parallel_group()
        self._dp_rank = parallel_state.get_data_parallel_rank()
        self._shares_experts = parallel_state.get_expert_model_parallel_world_size() > 1
        self.dp_size = parallel_state.get_data_parallel_world_size()
        """How many ranks share the batches."""
        self.num_tokens = 0
        """Tokens of all sequences run so far, over all ranks."""
        self.num_places = 0
        """Places in the batches that held them; the difference is padding."""

    @classmethod
    def start(
        cls, source: ModelSource, *, tp_size: int, pp_size: int, ep_size: int = 1, dtype: torch.dtype
    ) -> "ForwardRunner":
        """Start the ranks, and read the weights.

        Raises ConfigError where the model cannot be split so, or the ranks do not make complete copies of it.
        """
        source.check_layout(tp_size, pp_size, ep_size=ep_size)
        start_ranks(tp_size, pp_size, ep_size)
        return cls(source, dtype)

    @property
    def is_writer(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return dist.get_rank() == 0

    @torch.no_grad()
    def token_log_probs(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, Tensor | None]]:
        """Run batches one after the other; the TP x PP x CP ranks of one model must pass the same ones.

        Yields:
            The batch, and float32 [b, s/cp] in nats for this rank's share of its tokens: the label's log-probability,
            0 where the label is ``IGNORED``. None on every stage of the pipeline but the last.
        """
        for batch in batches:
            tokens, labels, positions = self._share(batch)
            options = {"sequence_length": batch.length, "scales_logits": False}
            products = forward_through_stages(self._model, tokens, positions, **options)
            yield batch, None if products is None else self._log_probs(products, labels)

    def _log_probs(self, products: Tensor, labels: Tensor) -> Tensor:
        options = {"tp_group": self._tp_group, "vocab_size": self._vocab_size}
        return vocab_parallel_log_probs(products, labels, scaling=logit_scaling(self._model.config), **options)

    def _share(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, labels and positions [b, s/cp] of this context-parallel rank, on its device."""
        multiple = 2 * self._cp_group.size()
        padding = -batch.tokens.shape[1] % multiple
        tokens = pad(torch.from_numpy(batch.tokens), (0, padding))
        rows = {
            "tokens": tokens,
            "labels": pad(torch.from_numpy(batch.labels), (0, padding), value=IGNORED),
            "positions": torch.arange(tokens.shape[1]).expand_as(tokens),
        }
        share = share_of_sequence({name: values.to(self._device) for name, values in rows.items()}, self._cp_group)
        return share["tokens"], share["labels"], share["positions"]

    def sequence_log_probs(
        self,
        sequences: Sequence[ScoredSequence],
        batch_tokens: int,
        on_sequences: Callable[[int], object] | None = None,
    ) -> Tensor:
        """The sum of each sequence's scored tokens' log-probabilities in nats, float64 on the CPU, on every rank.

        Batches of at most ``batch_tokens`` places are shared among the data-parallel ranks; all pass the same
        sequences. Each sequence is read with the rotary embedding that it has alone. One all-reduce of 8 bytes per
        sequence over all ranks. ``on_sequences`` is called after each of this rank's batches with the number of its
        sequences, for progress.
        """
        lengths = [sequence.num_inputs for sequence in sequences]
        plan = plan_batches(lengths, batch_tokens, kind_of=self._table_length)
        self.num_tokens += sum(sequence.num_inputs for sequence in sequences)
        self.num_places += sum(len(places) * padded_length(sequences[places[0]].num_inputs) for places in plan)
        sums = torch.zeros(len(sequences), dtype=torch.float64, device=self._device)
        for batch, log_probs in self.token_log_probs(self._own_batches(sequences, plan)):
            # Tensor-parallel ranks have the same values: one of them counts. Context-parallel ranks have a part each.
            if log_probs is not None and batch.places and self._tp_rank == 0:
                sums[list(batch.places)] = log_probs.sum(1, dtype=torch.float64)
            if on_sequences is not None:
                on_sequences(len(batch.places))
        if sequences:
            dist.all_reduce(sums)
        return sums.cpu()

    def _own_batches(self, sequences: Sequence[ScoredSequence], plan: list[list[int]]) -> Iterator[TokenBatch]:
        """This data-parallel rank's share; as many on each where ranks hold parts of each other's experts."""
        for places in plan[self._dp_rank :: self.dp_size]:
            yield make_batch(sequences, places)
        if self._shares_experts and self._dp_rank >= len(plan) % self.dp_size > 0:
            yield idle_batch()

    def from_writer(self, value: Any) -> Any:
        """The writer's ``value``, on every rank; any object that can be pickled."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def close(self) -> None:
        """Wait for every rank, and destroy the model's groups; the process group stays."""
        dist.barrier()
        parallel_state.destroy_model_parallel()

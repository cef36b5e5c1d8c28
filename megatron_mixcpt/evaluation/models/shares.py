"""Ranks that each hold the whole model and answer their share of the questions.

lm-eval divides the questions of a task itself where ranks share them; the examples before a question, which are drawn
with one generator for all questions, are then others than those of one process. Here the first rank alone makes the
questions, and deals out whole batches: every rank forms the batches again that one process would form, so that answers
are the same, padding included.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lm_eval.models.utils import Collator

LONGEST = timedelta(weeks=52)
"""What a rank waits for another: a rank whose share is short waits for the longest answer of all."""
END = "end"


def likelihood_batches(requests: Sequence[tuple[Any, list[int], list[int]]], batch_size: int) -> list[list[int]]:
    """Places in ``requests``, of each batch in which ``HFLM`` scores them: (text, context, continuation) in tokens.

    Continuations of one token that share a context share a row of a batch; they are dealt together.
    """
    rows = defaultdict(list)
    for place, (_, context, continuation) in enumerate(requests):
        rows[tuple(context + continuation[:-1])].append(place)
    order = Collator(
        requests,
        sort_fn=lambda request: (-len(request[1] + request[2]), tuple(request[1] + request[2])),
        group_fn=lambda request: request[1] + request[2][:-1],
        group_by="contexts",
    )
    batches = order.get_batched(n=batch_size)
    return [[place for _, left, right in batch for place in rows[tuple(left + right[:-1])]] for batch in batches]


def generation_batches(
    requests: Sequence[tuple[str, dict]], num_tokens: Callable[[str], int], batch_size: int
) -> list[list[int]]:
    """Places in ``requests``, (prompt, how to generate), of each batch in which ``HFLM`` answers them."""
    order = Collator(
        [(text, options, place) for place, (text, options) in enumerate(requests)],
        sort_fn=lambda request: (-num_tokens(request[0]), request[0]),
        group_fn=lambda request: request[1],
        group_by="gen_kwargs",
    )
    return [[place for _, _, place in batch] for batch in order.get_batched(n=batch_size)]


class Shares:
    """The ranks of the default process group, with the first as the one that asks."""

    def __init__(self) -> None:
        """Join the ranks that torchrun started, in a group that waits as long as an answer takes."""
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            dist.init_process_group("gloo", timeout=LONGEST)

    def from_first(self, value: Any) -> Any:
        """The first rank's ``value`` on every rank; any object that can be pickled."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_agree(self, value: bool) -> bool:
        """Whether ``value`` is true on every rank."""
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return all(values)

    def ask(
        self, kind: str, items: Sequence[Any], batches: Sequence[Sequence[int]], answer: Callable[[str, list], list]
    ) -> list:
        """The answers to ``items``, of which every rank gets whole ``batches``; the first rank calls it."""
        num_ranks = dist.get_world_size()
        dealt = [sorted(place for batch in batches[rank::num_ranks] for place in batch) for rank in range(num_ranks)]
        own: list[Any] = [None]
        dist.scatter_object_list(own, [(kind, [items[place] for place in places]) for places in dealt], src=0)
        found: list[Any] = [None] * num_ranks
        dist.gather_object(answer(*own[0]), found, dst=0)
        answers: list[Any] = [None] * len(items)
        for places, given in zip(dealt, found, strict=True):
            for place, one in zip(places, given, strict=True):
                answers[place] = one
        return answers

    def answer_until_the_end(self, answer: Callable[[str, list], list]) -> None:
        """Answer what the first rank deals out, until it calls :meth:`end`; all other ranks call it."""
        own: list[Any] = [None]
        while True:
            dist.scatter_object_list(own, None, src=0)
            kind, items = own[0]
            if kind == END:
                return
            dist.gather_object(answer(kind, items), None, dst=0)

    def end(self) -> None:
        """Let the other ranks end."""
        dist.scatter_object_list([None], [(END, [])] * dist.get_world_size(), src=0)

    def leave(self) -> None:
        """Destroy the group, if it was made here."""
        if self._owns_group:
            dist.destroy_process_group()

"""How far a benchmark task has come: suite, questions done of all, time left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from tqdm import tqdm

from megatron_mixcpt.jobs.progress import Progress


class TaskProgress(CacheHook):
    """Counts answers where lm-eval's models report each of them, which is to their cache's hook; it caches nothing."""

    def __init__(self) -> None:
        super().__init__(None)
        self._title = "questions"
        self._progress: Progress | None = None
        self._num_questions = self._num_shown = self._num_requests = self._num_answered = 0

    def title(self, text: str) -> None:
        """What the next questions belong to."""
        self._title = text

    @contextmanager
    def asking(self, num_questions: int, num_requests: int) -> Iterator[None]:
        """Show progress inside, where ``num_requests`` answers to ``num_questions`` come in."""
        self._num_questions, self._num_requests = num_questions, num_requests
        self._num_shown = self._num_answered = 0
        with Progress(num_questions, self._title, "questions") as self._progress:
            yield
            self._progress.add(num_questions - self._num_shown)
        self._progress = None

    def expect(self, num_requests: int) -> None:
        """This process answers only so many of the requests: its share stands for all."""
        self._num_requests = num_requests

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """lm-eval's models call it after each answer."""
        self.add(1)

    def add(self, number: int) -> None:
        """Count so many more answers."""
        self._num_answered += number
        if self._progress is not None:
            share = min(1.0, self._num_answered / max(self._num_requests, 1))
            number = int(share * self._num_questions) - self._num_shown
            self._num_shown += number
            self._progress.add(number)


def count_questions(requests: Sequence[Instance]) -> int:
    """How many questions are asked; one of multiple choice takes a request for each choice."""
    return len({(request.task_name, request.doc_id) for request in requests})


@contextmanager
def without_other_bars() -> Iterator[None]:
    """Keep lm-eval's own bars off the screen inside, which know neither suite nor task, and fill logs."""
    before = tqdm.__init__
    tqdm.__init__ = partialmethod(before, disable=True)  # type: ignore[assignment, method-assign] # a class's default
    try:
        yield
    finally:
        tqdm.__init__ = before  # type: ignore[method-assign]

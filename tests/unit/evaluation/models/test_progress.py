"""How far a task has come, in a log: suite and task, questions done of all, time left."""

import io
import time

from lm_eval.api.instance import Instance
from tqdm import tqdm

from megatron_mixcpt.evaluation.models.progress import TaskProgress, count_questions, without_other_bars
from megatron_mixcpt.jobs import progress as jobs_progress


def test_answers_are_counted_as_questions(capsys, monkeypatch):
    """Two questions of four choices each; this process answers half of the requests, and stands for all."""
    monkeypatch.setattr(jobs_progress, "LOG_SECONDS", 0.0)
    requests = [Instance("loglikelihood", {}, ("", ""), 0, metadata=("t", place // 4, 1)) for place in range(8)]
    progress = TaskProgress()
    progress.title("suite 1 of 2, math/gsm8k")
    with progress.asking(count_questions(requests), len(requests)):
        progress.expect(4)
        for _ in range(2):
            progress.add_partial("loglikelihood", (), None)
        time.sleep(0.01)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" questions")[0] for line in lines] == [
        f"suite 1 of 2, math/gsm8k: {share}% of 2" for share in (0, 50, 100)
    ]
    assert lines[-1].endswith(" 0 s left")


def test_other_bars_are_away():
    seen = io.StringIO()
    with without_other_bars():
        list(tqdm([1], file=seen))
    assert not seen.getvalue()
    list(tqdm([1], file=seen))
    assert "100%" in seen.getvalue()

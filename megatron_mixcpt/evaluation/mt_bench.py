"""MT-Bench (Zheng et al. 2023): answers in two turns, each rated from 1 to 10 by another language model.

The model answers in its chat template, sampled at temperature 0.3 and top-p 0.9 (the paper's appendix A.5). The judge
sees the conversation up to the turn that it rates and the reference answer, where the question has one. It is asked in
words of ours, so that ratings compare among runs of this tool with the same judge, not with published ones.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from megatron_mixcpt.data.chat.templates import choose_template, render
from megatron_mixcpt.data.records import Message
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.evaluation.benchmarks import TaskScore
from megatron_mixcpt.evaluation.judge import BEST_RATING, Judge, rating_of
from megatron_mixcpt.evaluation.settings import MTBenchSettings
from megatron_mixcpt.evaluation.task_data import read_rows

NAME = "mt_bench"
INSTRUCTION = """You are to rate the last answer of an AI assistant in the conversation below. Look at whether it helps,
is correct, relevant, deep enough, and follows what was asked; its length and style alone earn nothing. First explain
your view in a few sentences. Then give a rating from 1 (worst) to 10 (best) in exactly this form: [[5]].
"""


@dataclass(frozen=True)
class Question:
    """The turns of a user, and reference answers to them where there are any."""

    id: Any
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """A JSONL file as FastChat has it: ``question_id``, ``category``, ``turns``, and ``reference`` where there is one.

    Raises DataError, naming file and line.
    """
    questions = []
    for number, row in enumerate(read_rows(path, {}), start=1):
        turns, references = row.get("turns"), row.get("reference") or []
        if not _are_texts(turns) or not turns or not _are_texts(references):
            raise DataError(f"{path}: question {number}: expected lists of texts as turns and reference; correct it")
        place = row.get("question_id", number)
        questions.append(Question(place, str(row.get("category", "")), tuple(turns), tuple(references)))
    if not questions:
        raise DataError(f"--mt-bench {path}: holds no questions; give another file")
    return questions


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class Answerer(Protocol):
    """A model, wherever it runs; the classes of ``evaluation/models``."""

    tokenizer: Any
    progress: Any

    def reply(self, prompts: Sequence[str], sampling: Mapping[str, Any], seed: int) -> list[str]:
        """The answer to each prompt."""


def run_mt_bench(model: Answerer, questions: Sequence[Question], judge: Judge, settings: MTBenchSettings) -> TaskScore:
    """Answer and rate all questions; the value is the mean rating of all turns over 10.

    Raises ConfigError where the tokenizer has no chat template, or the judge gives no answer or no rating.
    """
    lines, ratings = [], []
    answered = zip(questions, answer_all(model, questions, settings), strict=True)
    for question, answers in tqdm(answered, desc="mt-bench, judge", total=len(questions), unit=" questions"):
        judgements = [judge.ask(judge_prompt(question, answers[: turn + 1])) for turn in range(len(answers))]
        rated = [rating_of(judgement) for judgement in judgements]
        ratings += [rating for rating in rated if rating is not None]
        line = {"question_id": question.id, "category": question.category, "turns": question.turns}
        lines.append(line | {"answers": answers, "ratings": rated, "judgements": judgements})
    if not ratings:
        raise ConfigError(f"--judge-model {judge.model}: gave no rating in the form [[5]]; use a stronger judge")
    figures = {
        "metric": "rating / 10",
        "value": statistics.fmean(ratings) / BEST_RATING,
        "stderr": statistics.stdev(ratings) / len(ratings) ** 0.5 / BEST_RATING if len(ratings) > 1 else None,
        "samples": len(ratings),
        "num_fewshot": 0,
    }
    return TaskScore(figures, lines)


def answer_all(model: Answerer, questions: Sequence[Question], settings: MTBenchSettings) -> list[list[str]]:
    """The model's answer to each turn of each question, given those before; the same for a question every time."""
    template = choose_template(model.tokenizer, None)
    sampling = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
    }
    talks: list[list[Message]] = [[] for _ in questions]
    num_turns = max(len(question.turns) for question in questions)
    for turn in range(num_turns):
        asked = [place for place, question in enumerate(questions) if turn < len(question.turns)]
        for place in asked:
            talks[place].append(Message("user", questions[place].turns[turn]))
        prompts = [render(model.tokenizer, template, talks[place], generation_prompt=True) for place in asked]
        model.progress.title(f"mt-bench, turn {turn + 1} of {num_turns}")
        for place, text in zip(asked, model.reply(prompts, sampling, settings.seed), strict=True):
            talks[place].append(Message("assistant", text.strip()))
    return [[message.content for message in talk if message.role == "assistant"] for talk in talks]


def judge_prompt(question: Question, answers: Sequence[str]) -> str:
    """What the judge reads to rate the last of ``answers``."""
    parts = [INSTRUCTION]
    for turn, given in enumerate(answers):
        parts.append(f"[User]\n{question.turns[turn]}\n")
        if turn < len(question.references):
            parts.append(f"[Reference answer, correct]\n{question.references[turn]}\n")
        parts.append(f"[Assistant]\n{given}\n")
    return "\n".join(parts)

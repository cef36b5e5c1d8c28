"""MT-Bench with a tiny model and a judge that listens on this machine."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_mixcpt.data.chat.templates import BUILT_IN_TEMPLATES
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.evaluation import judge as judge_module
from megatron_mixcpt.evaluation.judge import Judge, rating_of
from megatron_mixcpt.evaluation.models.local_model import LocalModel
from megatron_mixcpt.evaluation.mt_bench import Question, judge_prompt, read_questions, run_mt_bench
from megatron_mixcpt.evaluation.settings import MTBenchSettings
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

QUESTION = Question(81, "writing", ("Write.", "Again."), ("Reference 1",))


class JudgeServer(ThreadingHTTPServer):
    """Gives the answers of a list, one each time; a number is an HTTP status. Keeps what it was asked."""

    def __init__(self, answers: list[str | int]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        answer = self.server.answers.pop(0)
        self.send_response(answer if isinstance(answer, int) else 200)
        self.end_headers()
        if isinstance(answer, str):
            self.wfile.write(json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer([]) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "WAIT_SECONDS", 0.0)


def settings() -> MTBenchSettings:
    return MTBenchSettings(
        questions=Path("questions.jsonl"), judge_url="http://judge", judge_model="judge", max_new_tokens=8
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    tokenizer.chat_template = BUILT_IN_TEMPLATES["chatml"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    return LocalModel(LlamaForCausalLM(config).eval(), tokenizer, batch_size=1)


def test_answers_are_rated_and_summed_up(server, model):
    server.answers = ["Good. [[7]]", 503, "Not [[1]], rather [[4]]", "no rating", "[[10]]"]
    judge = Judge(server.url, "judge-1", "secret")
    questions = [QUESTION, Question(82, "math", ("Add 2.", "Add 3."), ())]
    score = run_mt_bench(model, questions, judge, settings())
    assert score.figures["value"] == pytest.approx((7 + 4 + 10) / 3 / 10)
    assert (score.figures["samples"], score.figures["stderr"]) == (3, pytest.approx(3 / 3**0.5 / 10))
    assert [line["ratings"] for line in score.samples] == [[7.0, 4.0], [None, 10.0]]
    first = server.asked[0]
    assert (first["model"], first["temperature"], first["path"]) == ("judge-1", 0, "/v1/chat/completions")
    assert first["key"] == "Bearer secret" and "secret" not in repr(judge)
    assert first["messages"][0]["content"] == judge_prompt(QUESTION, score.samples[0]["answers"][:1])
    again = run_mt_bench(model, [QUESTION], _agreeing(server), settings())
    assert again.samples[0]["answers"] == score.samples[0]["answers"]


def _agreeing(server: JudgeServer) -> Judge:
    server.answers = ["[[5]]"] * 2
    return Judge(server.url, "judge-1")


def test_what_the_judge_reads():
    text = judge_prompt(QUESTION, ["First!", "Second!"])
    places = [text.index(part) for part in ("Write.", "Reference 1", "First!", "Again.", "Second!")]
    assert places == sorted(places) and "Again." not in judge_prompt(QUESTION, ["First!"])


@pytest.mark.parametrize(("judgement", "rating"), [("[[8.5]]", 8.5), ("8", None), ("[[0]]", None), ("[[11]]", None)])
def test_ratings(judgement, rating):
    assert rating_of(judgement) == rating


@pytest.mark.parametrize(
    ("answers", "message"), [([401], "401 Unauthorized"), ([503] * 4, "503"), ([""], "gave no rating")]
)
def test_a_judge_that_does_not_judge_is_named(server, model, answers, message):
    server.answers = answers
    one = Question(1, "", ("Write.",), ())
    with pytest.raises(ConfigError, match=message) as refused:
        run_mt_bench(model, [one], Judge(server.url, "judge-1", "secret"), settings())
    assert not server.answers and "secret" not in str(refused.value)


def test_nobody_listens(server):
    with JudgeServer([]) as closed:
        url = closed.url
    with pytest.raises(ConfigError, match="judge-1 gives no answer .*refused.*; check address"):
        Judge(url, "judge-1").ask("?")


def test_questions_are_read_and_checked(tmp_path):
    path = tmp_path / "questions.jsonl"
    row = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["Reference 1"]}
    path.write_text(json.dumps(row) + "\n")
    assert read_questions(path) == [QUESTION]
    for text, message in (('{"turns": "Write."}', "question 1: expected lists of texts"), ("", "holds no questions")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_questions(path)

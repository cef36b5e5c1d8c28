"""A served model beside the same model in this process: the tokens that are sent, the answers, the log-likelihoods."""

import pytest
from lm_eval.api.instance import Instance

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.local_model import LocalModel
from megatron_mixcpt.evaluation.models.served_model import ServedModel
from megatron_mixcpt.evaluation.models.server import Server
from megatron_mixcpt.evaluation.models.server_settings import ServerSettings
from tests.unit.evaluation.models.openai_server import NAME, serving

LONG = "Add 1 and 2 and 3 to 4. " * 12
PROMPTS = ["Question: Add 1.", "One more", "<|begin_of_text|>It has its own.", LONG]


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=given, idx=0, metadata=("task", number, 1))
        for number, given in enumerate(arguments)
    ]


def generations(prompts: list[str], until: tuple[str, ...] = ("a", "Question:")) -> list[Instance]:
    options = {"until": list(until), "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    return instances("generate_until", [(prompt, options) for prompt in prompts])


def connected(server, tokenizer, **flags) -> Server:
    return Server.connect(ServerSettings(base_url=server.url, served_model=NAME, **flags), tokenizer)


@pytest.mark.parametrize("num_concurrent", [1, 4])
def test_answers_are_those_of_the_direct_way(folder, model, tokenizer, monkeypatch, num_concurrent):
    direct = LocalModel(model, tokenizer, batch_size=1)
    monkeypatch.setenv("THE_KEY", "secret")
    pairs = [("Question: 1 + 1 =", " 2"), ("Question: 1 + 1 =", " 3 or 4"), ("", "One"), (PROMPTS[2], " 5")]
    scored = instances("loglikelihood", pairs)
    with serving(model, tokenizer) as server:
        found = connected(server, tokenizer, num_concurrent=num_concurrent, key_variable="THE_KEY")
        served = ServedModel(found, folder, tokenizer)
        server.prompts.clear()
        answers = served.generate_until(generations(PROMPTS))
        sent = sorted(server.prompts)
        likelihoods = served.loglikelihood(scored)
        assert server.keys == {"Bearer secret"} and "secret" not in repr(found)
    assert answers == direct.generate_until(generations(PROMPTS))
    assert any(answers) and all("a" not in answer for answer in answers)
    # One BOS, and a prompt that is too long keeps its end: 96 positions, 12 of them for the answer.
    own = [tokenizer(text.removeprefix(tokenizer.bos_token)).input_ids[-84:] for text in PROMPTS]
    assert sent == sorted(own)
    expected = direct.loglikelihood(scored)
    assert [greedy for _, greedy in likelihoods] == [greedy for _, greedy in expected]
    # float32 on both sides, alone and beside one token more.
    assert [value for value, _ in likelihoods] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_a_server_that_takes_text_reads_the_same_tokens(folder, model, tokenizer):
    """It adds BOS itself, and leaves the stop in its answers; what it cannot read so is refused."""
    direct = LocalModel(model, tokenizer, batch_size=1)
    uncut = direct.generate_until(generations(PROMPTS[:3], ("never",)))
    stop = uncut[0][3:5]
    assert len(stop) == 2
    asked = generations(PROMPTS[:3], (stop,))
    with serving(model, tokenizer, "text") as server:
        served = ServedModel(connected(server, tokenizer, num_concurrent=1), folder, tokenizer)
        server.prompts.clear()
        answers = served.generate_until(asked)
        assert sorted(server.prompts) == sorted(served.tok_encode(PROMPTS[:3]))
        with pytest.raises(ConfigError, match="tiny: it takes prompts as text only, and one of .* exceeds the 84"):
            served.generate_until(generations([LONG]))
        with pytest.raises(ConfigError, match="adds other special tokens"):
            served.reply(["no BOS here"], {"max_new_tokens": 2}, seed=1)
    assert answers == direct.generate_until(asked) and answers[0] == uncut[0].partition(stop)[0]


def test_replies_are_sampled_from_one_seed(folder, model, tokenizer):
    with serving(model, tokenizer) as server:
        served = ServedModel(connected(server, tokenizer), folder, tokenizer)
        sampling = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9}
        prompts = ["<|im_start|>user", "no BOS"]
        first, again, other = (served.reply(prompts, sampling, seed) for seed in (1, 1, 2))
        sent = server.prompts[-2:]
    assert first == again != other
    assert sorted(sent) == sorted(tokenizer(text, add_special_tokens=False).input_ids for text in prompts)


@pytest.mark.parametrize("num_concurrent", [1, 2])
def test_a_question_is_sent_again_and_its_failure_is_one_line(folder, model, tokenizer, num_concurrent):
    with serving(model, tokenizer) as server:
        found = connected(server, tokenizer, num_concurrent=num_concurrent, attempts=2)
        served = ServedModel(found, folder, tokenizer)
        server.failures = [503]
        assert len(served.generate_until(generations(PROMPTS[:1]))) == 1 and not server.failures
        server.failures = [500] * 2
        with pytest.raises(ConfigError, match="tiny did not answer a question in 2 attempts .*500") as refused:
            served.generate_until(generations(PROMPTS[:1]))
    assert "\n" not in str(refused.value)

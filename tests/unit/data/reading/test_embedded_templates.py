"""Rendered chat templates are removed; text that only talks about them is not touched."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.data.preprocessing.unify import unified_text
from megatron_mixcpt.data.reading.embedded_templates import BUILT_IN_RULES, choose_rules, read_rules, strip_templates
from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import Conversation, Message
from megatron_mixcpt.errors import ConfigError

ALPACA = "Below is an instruction that describes a task{}. Write a response that completes the request.\n\n"


def stripped(prompt: str, response: str = "R") -> tuple[str, set[str]]:
    record = Conversation((Message("user", prompt), Message("assistant", response)))
    record, notes = strip_templates(record, choose_rules(None))
    return unified_text(record), {note.removeprefix("template ") for note in notes}


@pytest.mark.parametrize(
    ("prompt", "expected", "rule"),
    [
        (ALPACA.format("") + "### Instruction:\nDo it\n\n### Response:\n", "Do it\nR", "alpaca"),
        (
            ALPACA.format("") + "### Instruction:\nDo\n\nit\n\n### Input:\n1, 2\n\n### Response:",
            "Do\n\nit\n\n1, 2\nR",
            "alpaca",
        ),
        ("### Instruction:\nDo it\n\n### Response:\nDone", "Do it\nDone\nR", "alpaca"),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hi\nR", "chatml"),
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\nAgain<|im_end|>\n<|im_start|>assistant\n",
            "Be brief.\nHi\nHo\nAgain\nR",
            "chatml",
        ),
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "Hi\nR",
            "llama3",
        ),
        ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]", "Be brief.\nHi\nR", "llama2"),
        ("<s>[INST] Hi [/INST] Ho </s><s>[INST] Again [/INST]", "Hi\nHo\nAgain\nR", "llama2"),
        ("A chat between a curious user and an assistant. It helps. USER: Hi ASSISTANT:", "Hi\nR", "vicuna"),
        ("USER: Hi ASSISTANT: Ho</s>USER: Again ASSISTANT:", "Hi\nHo\nAgain\nR", "vicuna"),
        ("### Human: Hi\n### Assistant:", "Hi\nR", "human-assistant"),
        ("\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Again\n\nAssistant:", "Hi\nHo\nAgain\nR", "human-assistant"),
    ],
)
def test_rendered_templates_are_taken_off(prompt: str, expected: str, rule: str) -> None:
    assert stripped(prompt) == (expected, {rule})


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("[INST] Q [/INST]", "</s>"),
        ("USER: Q ASSISTANT:", " </s>\n"),
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>", " <|eot_id|>\n"),
        ("### Instruction:\nQ\n\n### Response:", "<|endoftext|>"),
    ],
)
def test_end_of_turn_of_the_prompts_template_is_taken_off_a_response(prompt: str, end: str) -> None:
    text, applied = stripped(prompt, f"An answer.{end}")
    assert text == "Q\nAn answer." and "end-of-turn" in applied and len(applied) == 2
    assert stripped("Q", f"An answer.{end}")[0] == f"Q\nAn answer.{end}"


def test_ends_that_are_kept_are_counted() -> None:
    kept = {"</s> at the end of a response kept, for its prompt is in no template that ends so"}
    assert stripped("Q", "An answer.</s>") == ("Q\nAn answer.</s>", kept)


STRIKE = "The tag for strike-through is <s>text</s>"


@pytest.mark.parametrize("prompt", ["Q", "[INST] Q [/INST]", "### Instruction:\nQ\n\n### Response:"])
@pytest.mark.parametrize(
    "response",
    [
        STRIKE,
        "Human: hi\nAssistant: hello",
        "USER: a ASSISTANT: b",
        "[INST] Hi [/INST] Ho",
        "### Instruction:\nDo it\n\n### Response:\nDone",
        "### Human: Hi\n### Assistant: Ho",
    ],
)
def test_a_response_that_looks_like_a_template_stays(prompt: str, response: str) -> None:
    text, applied = stripped(prompt, response)
    assert text == f"Q\n{response}" and len(applied) == (prompt != "Q")


def test_templates_around_each_message_are_taken_off() -> None:
    record = Conversation(
        (
            Message("user", "<|im_start|>user\nQ<|im_end|>"),
            Message("assistant", "<|im_start|>assistant\nA<|im_end|>", reasoning="because"),
        )
    )
    found, notes = strip_templates(record, choose_rules(None))
    assert found == Conversation((Message("user", "Q"), Message("assistant", "A", reasoning="because")))
    assert notes == ["template chatml"]


def test_a_record_of_which_only_some_questions_look_like_a_template_stays() -> None:
    talk = ("[INST] Hi [/INST]", "A", "Why did I write [INST]?", "B</s>")
    record = Conversation(tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(talk)))
    assert strip_templates(record, choose_rules(None, ()))[0] == record


@pytest.mark.parametrize(
    "text",
    [
        "What does ### Response: mean in Alpaca's template?",
        "Explain [INST] and [/INST].",
        "Write <|im_start|>user before a message and <|im_end|> after it, please.",
        "In the log, USER: root ASSISTANT: none was found.",
        "</s>",
        "### Instruction: but nothing follows",
        "Translate: Human: hello",
    ],
)
def test_text_about_templates_stays(text: str) -> None:
    assert stripped(text) == (f"{text}\nR", set())


def test_preferences_are_stripped_too_and_documents_are_not() -> None:
    row = {"prompt": "[INST] Hi [/INST]", "chosen": "A</s>", "rejected": "B</s>"}
    record, applied = strip_templates(to_record("dpo", row, FieldNames()), BUILT_IN_RULES)
    assert (unified_text(record), applied) == ("Hi\nA", ["template end-of-turn", "template llama2"])
    assert [message.content for message in record.rejected] == ["B"]
    document = to_record("cpt", {"text": "[INST] Hi [/INST]"}, FieldNames())
    assert strip_templates(document, BUILT_IN_RULES) == (document, [])


def test_rules_can_be_kept_out_and_added(tmp_path: Path) -> None:
    assert {rule.name for rule in choose_rules(["alpaca"])} == {rule.name for rule in BUILT_IN_RULES} - {"alpaca"}
    assert choose_rules([]) == ()
    with pytest.raises(ConfigError, match="--keep-templates none: no such rule"):
        choose_rules(["none"])
    path = tmp_path / "rules.json"
    rule = {"name": "mine", "about": "Q and A", "marker": "[USR]", "turn": r"\[USR\](?P<content>.*?)\[BOT\]"}
    path.write_text(json.dumps([rule]))
    rules = choose_rules(None, read_rules(path))
    assert rules[0].apply("[USR]Hi[BOT][USR]Ho[BOT]") == "Hi\nHo"
    record = Conversation((Message("user", "Q"), Message("assistant", "[USR]Hi[BOT]")))
    assert strip_templates(record, rules)[0].messages[1].content == "Hi"
    path.write_text(json.dumps([rule | {"everywhere": False}]))
    assert strip_templates(record, choose_rules(None, read_rules(path))) == (record, [])


@pytest.mark.parametrize("change", [{"turn": "("}, {"turn": "no group"}, {"turn": 3}, {"unknown": 1}])
def test_wrong_rules_are_named(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([{"name": "mine", "about": "", "marker": "", "turn": "(?P<content>.)"} | change]))
    with pytest.raises(ConfigError, match=f"--template-rules {path}"):
        read_rules(path)


def test_long_hostile_text_takes_no_time() -> None:
    for text in (
        "[INST] " * 3000,
        "### Instruction:\n" * 3000 + "### Response:",
        "USER: " * 5000 + "ASSISTANT:",
        "a" * 10**6,
    ):
        stripped(text)

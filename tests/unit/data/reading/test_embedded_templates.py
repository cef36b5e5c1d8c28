"""Rendered chat templates are removed; text that only talks about them is not touched."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.data.preprocessing.unify import unified_text
from megatron_mixcpt.data.reading.embedded_templates import BUILT_IN_RULES, choose_rules, read_rules, strip_templates
from megatron_mixcpt.data.records import Conversation, FieldNames, Message, to_record
from megatron_mixcpt.errors import ConfigError

ALPACA = "Below is an instruction that describes a task{}. Write a response that completes the request.\n\n"


def stripped(prompt: str, response: str = "R") -> tuple[str, set[str]]:
    record = Conversation((Message("user", prompt), Message("assistant", response)))
    record, applied = strip_templates(record, choose_rules(None))
    return unified_text(record), applied


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


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", " <|eot_id|>\n", "<|endoftext|>"])
def test_end_of_turn_is_taken_off_a_response(end: str) -> None:
    assert stripped("Q", f"An answer.{end}") == ("Q\nAn answer.", {"end-of-turn"})


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
    assert (unified_text(record), applied) == ("Hi\nA", {"llama2", "end-of-turn"})
    assert [message.content for message in record.rejected] == ["B"]
    document = to_record("cpt", {"text": "[INST] Hi [/INST]"}, FieldNames())
    assert strip_templates(document, BUILT_IN_RULES) == (document, set())


def test_rules_can_be_kept_out_and_added(tmp_path: Path) -> None:
    assert {rule.name for rule in choose_rules(["alpaca"])} == {rule.name for rule in BUILT_IN_RULES} - {"alpaca"}
    assert choose_rules([]) == ()
    with pytest.raises(ConfigError, match="--keep-templates none: no such rule"):
        choose_rules(["none"])
    path = tmp_path / "rules.json"
    rule = {"name": "mine", "about": "Q and A", "marker": "[USR]", "turn": r"\[USR\](?P<content>.*?)\[BOT\]"}
    path.write_text(json.dumps([rule]))
    assert choose_rules(None, read_rules(path))[0].apply("[USR]Hi[BOT][USR]Ho[BOT]") == "Hi\nHo"


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

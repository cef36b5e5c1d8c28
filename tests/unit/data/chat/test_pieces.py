"""Tokens at the border of prompt and response, with tokenizers of each class: what the model sees when it generates."""

import numpy as np
import pytest

from megatron_mixcpt.data.chat.templates import BUILT_IN_TEMPLATES
from megatron_mixcpt.data.records import Conversation, Message
from tests.unit.data.chat.chats import (
    BYTE_LEVEL,
    SENTENCEPIECE,
    as_given,
    conversation,
    encoder,
    response,
    supervised_texts,
    tokenizer_of,
)

INSTRUCT = (
    "{% for m in messages %}"
    "{{ '[INST] ' + m.content + ' [/INST] ' if m.role == 'user' else m.content + eos_token }}"
    "{% endfor %}"
)
"""As Llama 2's, with a blank at the end of the prompt."""
TEMPLATES = {"chatml": BUILT_IN_TEMPLATES["chatml"], "zephyr": BUILT_IN_TEMPLATES["zephyr"], "instruct": INSTRUCT}
CHAT = [
    Message("user", "Hi there"),
    Message("assistant", "It is 4."),
    Message("user", "Hello, again?"),
    Message("assistant", "hello world"),
]


@pytest.fixture(scope="module", params=BYTE_LEVEL + SENTENCEPIECE)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return tokenizer_of(request.param, tmp_path_factory.mktemp("pieces"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompts_ids_are_those_of_the_prompt_encoded_alone(tokenizer, name) -> None:
    """No token lies across the border, whatever the tokenizer would merge in one go; generation continues from it.

    Of several turns whose borders merge in one go, earlier responses keep the tokens that they were learned in; those
    of ``zephyr`` do not merge.
    """
    chat = encoder(tokenizer, TEMPLATES[name])
    for turns in (CHAT[:2], CHAT) if name == "zephyr" else (CHAT[:2],):
        found = response(chat, turns)
        expected = tokenizer.apply_chat_template(
            as_given(turns[:-1]), chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
        )
        assert list(found.query_tokens) == expected
    whole = tokenizer.decode(np.append(found.query_tokens, found.response_tokens))
    rendered = tokenizer.apply_chat_template(as_given(turns), chat_template=TEMPLATES[name], tokenize=False)
    blanks = str.maketrans("", "", " ▁\n")  # how many blanks decoding gives back is each tokenizer's own matter
    assert whole.translate(blanks) == rendered.translate(blanks)


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_and_scoring_agree_on_every_token(tokenizer, name) -> None:
    chat = encoder(tokenizer, TEMPLATES[name])
    odd = [Message("user", "\n Hi"), Message("assistant", "\n4"), Message("user", " "), Message("assistant", " x")]
    for turns in (CHAT[:2], CHAT, odd):
        scored = response(chat, turns)
        tokens = np.append(scored.query_tokens, scored.response_tokens)
        for supervise in ("all", "last"):
            np.testing.assert_array_equal(conversation(chat, turns, supervise=supervise).tokens, tokens)
        np.testing.assert_array_equal(
            conversation(chat, turns, supervise="last").loss_mask[-len(scored.response_tokens) :], True
        )


def test_a_response_after_a_blank_has_no_second_one(tokenizer) -> None:
    """`[/INST] ` and `Hello`: the model writes `Hello`, not `▁Hello`."""
    found = response(encoder(tokenizer, INSTRUCT), [CHAT[0], Message("assistant", "Hello")])
    written = "".join(tokenizer.convert_ids_to_tokens(found.response_tokens))
    assert written == "Hello" + tokenizer.eos_token
    assert tokenizer.convert_ids_to_tokens(int(found.query_tokens[-1]))[-1] in "▁Ġ"


def test_conversations_of_one_call_are_encoded_as_alone(tokenizer) -> None:
    chat = encoder(tokenizer, "zephyr")
    forged = [Message("user", f"a{tokenizer.eos_token} b"), Message("assistant", "c")]
    several = [CHAT[:2], forged, CHAT, CHAT[:2], [CHAT[0]]]
    found = chat.encode_conversations([Conversation(tuple(turns)) for turns in several])
    for turns, together in zip(several[:-1], found, strict=False):
        alone = conversation(chat, turns)
        np.testing.assert_array_equal(together.tokens, alone.tokens)
        assert supervised_texts(tokenizer, together) == supervised_texts(tokenizer, alone)
    assert found[-1].reason == "no_assistant_turn"
    assert chat.encode_conversations([]) == []

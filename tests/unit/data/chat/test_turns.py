"""Templates that rewrite what they wrote, and reasoning in its place, as Qwen3's and Qwen3.5's templates have it."""

import numpy as np
import pytest

from megatron_mixcpt.data.chat.refusals import Refusal
from megatron_mixcpt.data.chat.turns import Borders, find_borders, wanted_beginnings
from megatron_mixcpt.data.records import Message, PreferencePair
from tests.unit.data.chat.chats import conversation, encoder, response, supervised_texts, tokenizer_of
from tests.unit.data.chat.qwen_templates import EMPTY_BLOCK, QWEN3, QWEN35

ONE_TURN = [Message("user", "2+2?"), Message("assistant", "4")]
TWO_TURNS = [*ONE_TURN, Message("user", "Sure?"), Message("assistant", "yes")]
END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return tokenizer_of("qwen2", tmp_path_factory.mktemp("qwen"))


def text(tokenizer, encoded) -> str:
    return tokenizer.decode(np.concatenate([encoded.query_tokens, encoded.response_tokens]))


def test_where_turns_begin_and_end() -> None:
    """Messages u a u a; the borders are the ends of "u<", "u<a>", "u<a>u<"."""
    assert wanted_beginnings([1, 3]) == [(4, False), (1, True), (2, False), (3, True)]
    assert find_borders("u<a>u<b>", ["u<", "u<a>", "u<a>u<"]) == Borders([2, 6], [4, 8])
    assert find_borders("u<a>u<b>", ["u<", "u<A>", "u<a>u<"]) == Borders([6], [8])
    assert find_borders("u<a>u<b>", ["u<", "u<a>", "u:"]) is None


@pytest.mark.parametrize("template", [QWEN3, QWEN35])
def test_a_rewritten_conversation_is_learned_in_its_last_turn(tokenizer, template) -> None:
    """The template drops the block of reasoning from the first turn once a second question follows."""
    chat = encoder(tokenizer, template)
    encoded = conversation(chat, TWO_TURNS)
    assert encoded.notes == ("last_turn_only",)
    assert tokenizer.decode(encoded.tokens) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nyes<|im_end|>"
    )
    (learned,) = supervised_texts(tokenizer, encoded)
    assert learned == ("<think>\n" if template is QWEN3 else "") + f"\n</think>\n\nyes{END}"
    scored = response(chat, TWO_TURNS)
    np.testing.assert_array_equal(encoded.tokens, np.concatenate([scored.query_tokens, scored.response_tokens]))
    # With one turn, nothing is rewritten; nor is it a note where the last turn alone was asked for.
    for found in (scored, conversation(chat, ONE_TURN), conversation(chat, TWO_TURNS, supervise="last")):
        assert found.notes == ()


@pytest.mark.parametrize("template", [QWEN3, QWEN35])
def test_an_empty_block_of_reasoning_is_learned_but_not_scored(tokenizer, template) -> None:
    chat = encoder(tokenizer, template)
    opened = "" if template is QWEN3 else "<think>\n"
    block = "<think>\n\n</think>\n\n"
    assert supervised_texts(tokenizer, conversation(chat, ONE_TURN)) == [f"{block}4{END}".removeprefix(opened)]
    scored = response(chat, ONE_TURN)
    assert tokenizer.decode(scored.response_tokens) == f"4{END}" and scored.num_end_tokens == 1
    assert tokenizer.decode(scored.query_tokens) == f"<|im_start|>user\n2+2?{END}\n<|im_start|>assistant\n{block}"
    pair = PreferencePair((ONE_TURN[0],), (ONE_TURN[1],), (Message("assistant", "five"),))
    (found,) = chat.encode_pairs([pair])
    np.testing.assert_array_equal(found.prompt_tokens, scored.query_tokens)
    np.testing.assert_array_equal(found.chosen_tokens, scored.response_tokens)
    assert tokenizer.decode(found.rejected_tokens) == f"five{END}"


@pytest.mark.parametrize("template", [QWEN3, QWEN35, EMPTY_BLOCK])
@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_a_raw_completion_has_one_block_of_reasoning(tokenizer, template, opening) -> None:
    """Also where the template would put an empty block before it."""
    raw = [ONE_TURN[0], Message("assistant", f"{opening}two and two\n</think>\n\n4")]
    whole = text(tokenizer, response(encoder(tokenizer, template), raw))
    assert whole.endswith(f"assistant\n<think>\ntwo and two\n</think>\n\n4{END}")
    assert whole.count("think>") == 2


def test_reasoning_is_learned_where_the_template_writes_it(tokenizer) -> None:
    turns = [ONE_TURN[0], Message("assistant", "4", reasoning="two and two")]
    encoded = conversation(encoder(tokenizer, QWEN3), turns)
    assert supervised_texts(tokenizer, encoded) == [f"<think>\ntwo and two\n</think>\n\n4{END}"]
    assert encoded.notes == ()
    without = conversation(encoder(tokenizer, "chatml"), turns)
    assert supervised_texts(tokenizer, without) == [f"4{END}"] and without.notes == ("reasoning_not_written",)


def test_a_pair_of_which_one_side_reasons(tokenizer) -> None:
    pair = PreferencePair((ONE_TURN[0],), (Message("assistant", "4", reasoning="hm"),), (ONE_TURN[1],))
    (found,) = encoder(tokenizer, QWEN3).encode_pairs([pair])
    assert tokenizer.decode(found.chosen_tokens) == f"<think>\nhm\n</think>\n\n4{END}"
    assert tokenizer.decode(found.rejected_tokens) == f"<think>\n\n</think>\n\n4{END}"


def test_a_side_of_a_pair_that_is_not_to_be_learned(tokenizer) -> None:
    side = Message("assistant", "4", is_supervised=False)
    (found,) = encoder(tokenizer, "chatml").encode_pairs([PreferencePair(tuple(TWO_TURNS[:3]), (side,), (side,))])
    assert isinstance(found, Refusal) and found.reason == "not_supervised"


def test_turns_that_are_not_to_be_learned_are_context(tokenizer) -> None:
    bad = Message("assistant", "5", is_supervised=False)
    chat = encoder(tokenizer, "chatml")
    encoded = conversation(chat, [ONE_TURN[0], bad, *TWO_TURNS[2:]])
    assert supervised_texts(tokenizer, encoded) == [f"yes{END}"] and "5<|im_end|>" in tokenizer.decode(encoded.tokens)
    last = conversation(chat, TWO_TURNS, supervise="last")
    assert supervised_texts(tokenizer, last) == [f"yes{END}"] and last.notes == ()
    assert supervised_texts(tokenizer, conversation(chat, TWO_TURNS)) == [f"4{END}", f"yes{END}"]
    # What follows the last turn that is learned is left out, in scoring as in training.
    for found in (conversation(chat, [*TWO_TURNS[:3], bad]), response(chat, [*TWO_TURNS[:3], bad])):
        tokens = found.tokens if hasattr(found, "tokens") else np.append(found.query_tokens, found.response_tokens)
        assert tokenizer.decode(tokens) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    refused = conversation(chat, [ONE_TURN[0], bad])
    assert isinstance(refused, Refusal) and refused.reason == "not_supervised"

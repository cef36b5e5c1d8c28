"""Tiny tokenizers of each class, and short ways to encode with them."""

from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from megatron_mixcpt.data.chat.encoding import ChatEncoder, EncodedConversation, EncodedResponse, Refusal
from megatron_mixcpt.data.chat.templates import ChatTemplate, choose_template
from megatron_mixcpt.data.records import Conversation, Message
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from tests.unit.data.tiny_tokenizer import LLAMA3_TOKENS, save_tiny_tokenizer

TEXTS = ["Hi there\nIt is 4.\nAgain, it is what it is <|user|>\n<|assistant|>\n[INST] [/INST] Hello world, hello?"] * 4
BYTE_LEVEL = ("gpt2", "llama3", "qwen2", "smollm2")
SENTENCEPIECE = ("first", "always")


def sentencepiece_like(scheme: str = "first") -> PreTrainedTokenizerFast:
    """As Mistral's and Phi-3's: a blank is put before a text's start, and one control token swallows blanks after it.

    ``always``: as Llama 2's, which puts it after every control token, too.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    if scheme == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tokenizer_of(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    """A tiny tokenizer: one of ``BYTE_LEVEL`` or of ``SENTENCEPIECE``."""
    if kind in SENTENCEPIECE:
        return sentencepiece_like(kind)
    return load_tokenizer(save_tiny_tokenizer(folder, kind, more_special_tokens=LLAMA3_TOKENS))


def encoder(tokenizer, template: str, **options) -> ChatEncoder:
    """With a built-in template, or one given as text."""
    chosen = ChatTemplate("test", template) if "{" in template else choose_template(tokenizer, template)
    return ChatEncoder(tokenizer, chosen, **options)


def conversation(chat: ChatEncoder, messages: list[Message], tools=(), **options) -> EncodedConversation | Refusal:
    """A conversation, encoded."""
    return chat.encode_conversations([Conversation(tuple(messages), tuple(tools))], **options)[0]


def response(chat: ChatEncoder, messages: list[Message], tools=()) -> EncodedResponse | Refusal:
    """The last turn of a conversation, encoded."""
    return chat.encode_query_responses([Conversation(tuple(messages), tuple(tools))])[0]


def supervised_texts(tokenizer, encoded: EncodedConversation) -> list[str]:
    """The text of each run of supervised tokens."""
    starts = np.flatnonzero(np.diff(encoded.loss_mask.astype(int), prepend=0))
    runs = np.split(np.arange(len(encoded.tokens)), starts)
    return [tokenizer.decode(encoded.tokens[run]) for run in runs if len(run) and encoded.loss_mask[run[0]]]


def as_given(messages: list[Message]) -> list[dict[str, str]]:
    """Messages as transformers takes them."""
    return [{"role": message.role, "content": message.content} for message in messages]

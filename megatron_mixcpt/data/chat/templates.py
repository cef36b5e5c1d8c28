"""Which chat template a run speaks: the tokenizer's own, a built-in one by name, or a Jinja file.

Rendering is transformers' own, in its sandbox, within bounds of time and memory (``renderer.py``).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mixcpt.data.chat.renderer import Asked, Renderer, RenderingError
from megatron_mixcpt.data.records import Message
from megatron_mixcpt.errors import ConfigError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

BUILT_IN_TEMPLATES = {
    "llama3": (
        "{% for message in messages %}"
        "{% if loop.first %}{{ bos_token or '' }}{% endif %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
        "{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
}
"""As Meta-Llama-3-Instruct, Qwen2-Instruct (without its default system message) and Zephyr write their turns."""

NEEDED_TOKENS = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "zephyr": (),
}
"""Control tokens that a tokenizer must have: as pieces of text they would be no ends of turns."""

RENDERER = Renderer()
"""Its process starts with the first rendering."""


def _present() -> str:
    return datetime.now().isoformat(timespec="seconds")


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and what to call it in messages."""

    name: str
    """``the tokenizer's own``, a built-in name, or the file's path."""
    text: str
    """Jinja."""
    now: str = field(default_factory=_present)
    """The date and time (ISO) that the template is told, the same for all of a run."""

    @property
    def uses_date(self) -> bool:
        """Whether the template writes the date, so that its text depends on ``now``."""
        return "strftime_now" in self.text

    @property
    def digest(self) -> str:
        """SHA-256 of the text, and of ``now`` where it is used, in hexadecimal."""
        date = self.now if self.uses_date else ""
        return hashlib.sha256((self.text + date).encode("utf-8")).hexdigest()


def choose_template(tokenizer: "PreTrainedTokenizerBase", given: str | None, now: str | None = None) -> ChatTemplate:
    """The template that ``--chat-template`` asks for: a built-in name, a file, or None for the tokenizer's own.

    ``now``: the date and time (ISO) of the run's first start, for templates that write the date; None: the present.
    Raises ConfigError where there is none, or its control tokens are not in the tokenizer's vocabulary.
    """
    names = ", ".join(BUILT_IN_TEMPLATES)
    now = now or _present()
    if given is None:
        try:
            return _check(tokenizer, ChatTemplate("the tokenizer's own", tokenizer.get_chat_template(), now))
        except ValueError as error:
            raise ConfigError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, as base models do; "
                f"name one with --chat-template ({names}, or a Jinja file)"
            ) from error
    if given not in BUILT_IN_TEMPLATES:
        return _check(tokenizer, ChatTemplate(given, _read(Path(given), names), now))
    if missing := [token for token in NEEDED_TOKENS[given] if token not in tokenizer.get_added_vocab()]:
        raise ConfigError(
            f"--chat-template {given}: the tokenizer of {tokenizer.name_or_path} has no {', '.join(missing)}; "
            f"take another template ({names}, or a Jinja file)"
        )
    return ChatTemplate(given, BUILT_IN_TEMPLATES[given], now)


def _read(path: Path, names: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path}: neither a built-in one ({names}) nor a readable file") from error


def _check(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> ChatTemplate:
    """The template, once it has rendered a question and an answer. Raises ConfigError with its line."""
    messages = [Message("user", "question"), Message("assistant", "answer")]
    try:
        rendered = render(tokenizer, template, messages)
    except RenderingError as error:
        place = f"{template.name}:{error.line}" if error.line else template.name
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{place}: the chat template cannot be rendered ({reason}); fix it, or name another"
        ) from error
    if "question" not in rendered or "answer" not in rendered:
        raise ConfigError(f"{template.name}: the chat template leaves messages out; it renders {rendered[:200]!r}")
    return template


def render(
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    messages: Sequence[Message],
    generation_prompt: bool = False,
) -> str:
    """The conversation as the template writes it.

    Raises RenderingError where the template fails, or takes too much time or memory.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    (found,) = render_all(tokenizer, template, [Asked(turns, None, [(len(turns), generation_prompt)])])
    if isinstance(found, RenderingError):
        raise found
    return found[0]


def render_all(
    tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, conversations: Sequence[Asked]
) -> list[list[str] | RenderingError]:
    """What is asked for of each conversation as the template writes it, or why it fails.

    One call costs one round trip to the process that renders.
    """
    return RENDERER.render(template.text, conversations, tokenizer.special_tokens_map, template.now)

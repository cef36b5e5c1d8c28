"""Chat templates that data sets carry inside their text are recognised and taken off (paper section 2.1.1).

A rule is a regular expression of one *turn*. It applies to a record all of whose user messages consist of turns, one
after the other; what remains of them are the named groups in their order, joined with a newline (a group named
``input`` with a blank line, as instruction and input are in a record). Text that merely mentions a template does not
consist of turns, and is left alone.

A response is its author's text: it loses nothing for looking like a template. Only where the rule applies to the
record's user messages does it lose the template's header, and the token that ends a turn in that template, unless it
closes something in the response itself (``<s>struck out</s>``).

More rules come from a JSON file: ``[{"name": "mine", "about": "...", "marker": "[USR]", "turn": "..."}]``. They apply
to each message that consists of turns, responses included, unless they say ``"everywhere": false``.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_mixcpt.data.records import Conversation, Document, Message, Record
from megatron_mixcpt.errors import ConfigError


@dataclass(frozen=True)
class TemplateRule:
    """How one template looks."""

    name: str
    about: str
    marker: str
    """A string that every use of the template contains; looked for first, for that is fast."""
    turn: str
    """A regular expression (``re.DOTALL``) of one turn, its contents in named groups."""
    ends: tuple[str, ...] = ()
    """Tokens that end a response in this template."""
    everywhere: bool = False
    """Whether it applies to each message alone, whatever the others look like."""

    @property
    def has_one_message(self) -> bool:
        """Whether a turn is one message, of whatever role, rather than a query with its response."""
        return "(?P<content>" in self.turn

    def apply(self, content: str) -> str | None:
        """The contents of the turns that ``content`` consists of, or None where it is no use of this template."""
        if self.marker not in content:
            return None
        pattern, position, found = re.compile(self.turn, re.DOTALL), 0, ""
        while position < len(content):
            match = pattern.match(content, position)
            if match is None or match.end() == position:
                return None
            position = match.end()
            for name, text in match.groupdict().items():
                if text and text.strip():
                    found += ("\n\n" if name == "input" else "\n" if found else "") + text
        return found


BUILT_IN_RULES = (
    TemplateRule(
        "alpaca",
        "Alpaca: Below is an instruction ... ### Instruction: ... ### Input: ... ### Response: ...",
        "### Response:",
        r"\s*(?:Below is an instruction[^\n]*\n+)?### Instruction:\s*(?P<instruction>.*?)"
        r"(?:\s*\n### Input:\s*(?P<input>.*?))?\s*\n### Response:"
        r"\s*(?P<response>.*?)\s*(?:</s>\s*|(?=\n### Instruction:)|\Z)",
        ("</s>", "<|endoftext|>"),
    ),
    TemplateRule(
        "chatml",
        "ChatML: <|im_start|>user ... <|im_end|>",
        "<|im_start|>",
        r"\s*<\|im_start\|>(?:system|user|assistant|tool)\s*(?P<content>.*?)\s*(?:<\|im_end\|>\s*|\Z)",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    TemplateRule(
        "llama3",
        "Llama 3: <|start_header_id|>user<|end_header_id|> ... <|eot_id|>",
        "<|start_header_id|>",
        r"\s*(?:<\|begin_of_text\|>)?<\|start_header_id\|>\w+<\|end_header_id\|>\s*(?P<content>.*?)\s*"
        r"(?:<\|eot_id\|>\s*|<\|end_of_text\|>\s*|\Z)",
        ("<|eot_id|>", "<|end_of_text|>"),
    ),
    TemplateRule(
        "llama2",
        "Llama 2: <s>[INST] <<SYS>> ... <</SYS>> ... [/INST] ... </s>",
        "[/INST]",
        r"\s*(?:<s>)?\s*\[INST\]\s*(?:<<SYS>>\s*(?P<system>.*?)\s*<</SYS>>\s*)?(?P<query>.*?)\s*\[/INST\]"
        r"\s*(?P<response>.*?)\s*(?:</s>\s*|(?=<s>|\[INST\])|\Z)",
        ("</s>",),
    ),
    TemplateRule(
        "vicuna",
        "Vicuna: A chat between ... USER: ... ASSISTANT: ...</s>",
        "ASSISTANT:",
        r"\s*(?:A chat between [^\n]*?(?=\s+USER:))?\s*USER:\s*(?P<query>.*?)\s*ASSISTANT:"
        r"\s*(?P<response>.*?)\s*(?:</s>\s*|(?=\bUSER:)|\Z)",
        ("</s>",),
    ),
    TemplateRule(
        "human-assistant",
        "Guanaco and HH: ### Human: ... ### Assistant: ..., or Human: ... Assistant: ...",
        "Assistant:",
        r"\s*(?:###\s*)?Human:\s*(?P<query>.*?)\s*\n\s*(?:###\s*)?Assistant:\s*(?P<response>.*?)\s*"
        r"(?=\n\s*(?:###\s*)?Human:|\Z)",
        ("</s>", "<|endoftext|>"),
    ),
    TemplateRule(
        "end-of-turn",
        "the token that ends a response to messages in one of these templates: ... </s>, ... <|im_end|>",
        "",
        "(?!)(?P<content>)",  # matches nothing: a rule by its name alone, so that it can be listed and kept out
    ),
)
END_OF_TURN = "end-of-turn"
_ENDS = tuple(dict.fromkeys(end for rule in BUILT_IN_RULES for end in rule.ends))


def read_rules(path: Path) -> tuple[TemplateRule, ...]:
    """Read rules from a JSON file. Raises ConfigError naming the file and the rule."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        rules = tuple(TemplateRule(**({"everywhere": True} | item)) for item in items)
    except (OSError, ValueError, TypeError) as error:
        expected = 'a list of {"name", "about", "marker", "turn"}'
        raise ConfigError(f"--template-rules {path}: expected {expected} ({error})") from error
    for rule in rules:
        try:
            has_groups = bool(re.compile(rule.turn).groupindex)
        except (re.error, TypeError) as error:
            raise ConfigError(f"--template-rules {path}: the turn of {rule.name!r} is no pattern ({error})") from error
        if not has_groups:
            raise ConfigError(
                f"--template-rules {path}: the turn of {rule.name!r} has no named group; add (?P<content>...)"
            )
    return rules


def choose_rules(kept: Iterable[str] | None, extra: tuple[TemplateRule, ...] = ()) -> tuple[TemplateRule, ...]:
    """The rules to apply: ``extra`` and the built-in ones, less those named in ``kept``; an empty ``kept`` means all.

    Raises ConfigError for a name that no rule has.
    """
    rules = {rule.name: rule for rule in (*extra, *BUILT_IN_RULES)}
    if kept is None:
        return tuple(rules.values())
    kept = list(kept) or list(rules)
    for name in kept:
        if name not in rules:
            raise ConfigError(f"--keep-templates {name}: no such rule; there are {', '.join(rules)}")
    return tuple(rule for name, rule in rules.items() if name not in kept)


def strip_templates(record: Record, rules: tuple[TemplateRule, ...]) -> tuple[Record, list[str]]:
    """A record without the templates in its messages, and what is to be counted: which rules applied, and kept ends."""
    if isinstance(record, Document) or not rules:
        return record, []
    stripper = _Stripper(record.messages if isinstance(record, Conversation) else record.prompt, rules)
    take_off = stripper.stripped
    if isinstance(record, Conversation):
        messages = take_off(record.messages)
        found: Record = record if messages is record.messages else replace(record, messages=messages)
    else:
        prompt, chosen, rejected = take_off(record.prompt), take_off(record.chosen), take_off(record.rejected)
        found = replace(record, prompt=prompt, chosen=chosen, rejected=rejected)
    return found, sorted(stripper.notes)


class _Stripper:
    """Takes off the template that all user messages of a record are in."""

    def __init__(self, messages: tuple[Message, ...], rules: tuple[TemplateRule, ...]):
        queries = [message.content for message in messages if message.role == "user"]
        possible = [rule for rule in rules if not rule.everywhere and queries and rule.marker in queries[0]]
        self._rule = next((rule for rule in possible if all(rule.apply(query) is not None for query in queries)), None)
        self._tried = [rule for rule in rules if rule.everywhere] + ([self._rule] if self._rule else [])
        self._strips_ends = any(rule.name == END_OF_TURN for rule in rules)
        self.notes: set[str] = set()

    def stripped(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages without the template."""
        found = tuple(self._message(message) for message in messages)
        return messages if all(one is other for one, other in zip(found, messages, strict=True)) else found

    def _message(self, message: Message) -> Message:
        content = message.content
        for rule in self._tried:
            # Built-in templates with a query and a response in one turn are none of a response alone.
            is_possible = rule.everywhere or message.role != "assistant" or rule.has_one_message
            if is_possible and (stripped := rule.apply(content)) is not None:
                self.notes.add(f"template {rule.name}")
                content = stripped
                break
        if message.role == "assistant" and self._strips_ends:
            content = self._without_end(content)
        return message if content is message.content else replace(message, content=content)

    def _without_end(self, response: str) -> str:
        text = response.rstrip()
        end = next((end for end in _ENDS if text.endswith(end) and text != end), None)
        if end is None or end == "</s>" and text.count("<s>") >= text.count("</s>"):  # closes what it opened itself
            return response
        if self._rule is None or end not in self._rule.ends:
            self.notes.add(f"{end} at the end of a response kept, for its prompt is in no template that ends so")
            return response
        self.notes.add(f"template {END_OF_TURN}")
        return text.removesuffix(end).rstrip()

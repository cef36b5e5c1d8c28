"""Chat templates that data sets carry inside their text are recognised and taken off (paper section 2.1.1).

A rule is a regular expression of one *turn*. It applies to a message whose whole content is turns, one after the
other; what remains are the named groups in their order, joined with a newline (a group named ``input`` with a blank
line, as instruction and input are in a record). Text that merely mentions a template does not consist of turns, and is
left alone.

More rules come from a JSON file: ``[{"name": "mine", "about": "...", "marker": "[USR]", "turn": "..."}]``.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt.data.records import Conversation, Document, Message, PreferencePair, Record
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
    ),
    TemplateRule(
        "chatml",
        "ChatML: <|im_start|>user ... <|im_end|>",
        "<|im_start|>",
        r"\s*<\|im_start\|>(?:system|user|assistant|tool)\s*(?P<content>.*?)\s*(?:<\|im_end\|>\s*|\Z)",
    ),
    TemplateRule(
        "llama3",
        "Llama 3: <|start_header_id|>user<|end_header_id|> ... <|eot_id|>",
        "<|start_header_id|>",
        r"\s*(?:<\|begin_of_text\|>)?<\|start_header_id\|>\w+<\|end_header_id\|>\s*(?P<content>.*?)\s*"
        r"(?:<\|eot_id\|>\s*|<\|end_of_text\|>\s*|\Z)",
    ),
    TemplateRule(
        "llama2",
        "Llama 2: <s>[INST] <<SYS>> ... <</SYS>> ... [/INST] ... </s>",
        "[/INST]",
        r"\s*(?:<s>)?\s*\[INST\]\s*(?:<<SYS>>\s*(?P<system>.*?)\s*<</SYS>>\s*)?(?P<query>.*?)\s*\[/INST\]"
        r"\s*(?P<response>.*?)\s*(?:</s>\s*|(?=<s>|\[INST\])|\Z)",
    ),
    TemplateRule(
        "vicuna",
        "Vicuna: A chat between ... USER: ... ASSISTANT: ...</s>",
        "ASSISTANT:",
        r"\s*(?:A chat between [^\n]*?(?=\s+USER:))?\s*USER:\s*(?P<query>.*?)\s*ASSISTANT:"
        r"\s*(?P<response>.*?)\s*(?:</s>\s*|(?=\bUSER:)|\Z)",
    ),
    TemplateRule(
        "human-assistant",
        "Guanaco and HH: ### Human: ... ### Assistant: ..., or Human: ... Assistant: ...",
        "Assistant:",
        r"\s*(?:###\s*)?Human:\s*(?P<query>.*?)\s*\n\s*(?:###\s*)?Assistant:\s*(?P<response>.*?)\s*"
        r"(?=\n\s*(?:###\s*)?Human:|\Z)",
    ),
    TemplateRule(
        "end-of-turn",
        "a response that still ends with its control token: ... </s>, ... <|im_end|>, ... <|eot_id|>",
        "",
        r"(?P<content>.*\S)\s*(?:</s>|<\|im_end\|>|<\|eot_id\|>|<\|end_of_text\|>|<\|endoftext\|>)\s*\Z",
    ),
)


def read_rules(path: Path) -> tuple[TemplateRule, ...]:
    """Read rules from a JSON file. Raises ConfigError naming the file and the rule."""
    try:
        rules = tuple(TemplateRule(**item) for item in json.loads(path.read_text(encoding="utf-8")))
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


def strip_templates(record: Record, rules: tuple[TemplateRule, ...]) -> tuple[Record, set[str]]:
    """A record without the templates in its messages, and the names of the rules that applied."""
    if isinstance(record, Document):
        return record, set()
    applied: set[str] = set()

    def stripped(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(Message(message.role, _strip(message.content, rules, applied)) for message in messages)

    if isinstance(record, Conversation):
        return Conversation(stripped(record.messages)), applied
    return PreferencePair(stripped(record.prompt), stripped(record.chosen), stripped(record.rejected)), applied


def _strip(content: str, rules: tuple[TemplateRule, ...], applied: set[str]) -> str:
    for rule in rules:
        stripped = rule.apply(content)
        if stripped is not None:
            applied.add(rule.name)
            return stripped
    return content

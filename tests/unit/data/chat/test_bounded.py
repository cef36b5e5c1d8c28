"""What a template may compute is bounded; a process goes on as it was."""

import resource
import signal
from pathlib import Path

import pytest
from jinja2 import TemplateError

from megatron_mixcpt.data.chat.bounded import TookTooLongError, bounded
from megatron_mixcpt.data.chat.templates import ChatTemplate, choose_template, render
from megatron_mixcpt.data.records import Message
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import ConfigError
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

DOUBLING = "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
NO_END = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return load_tokenizer(save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_time_and_memory_end_it_and_nothing_stays() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(TookTooLongError), bounded(cpu_seconds=0.05):
        while True:
            pass
    with pytest.raises(MemoryError), bounded(extra_bytes=1 << 26):
        bytearray(1 << 28)
    with bounded():
        assert len(bytearray(1 << 20)) == 1 << 20
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ 'a' * 10**12 }}", "MemoryError"),
        (DOUBLING, "MemoryError"),
        ("{{ range(10**9) }}", "OverflowError: Range too big"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 'a' * 10**7 }}", "it writes 10,000,000 characters"),
    ],
)
def test_hostile_templates_are_refused_in_one_line(
    text: str, reason: str, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_mixcpt.data.chat.templates.bounded", lambda: bounded(extra_bytes=1 << 27))
    (tmp_path / "x.jinja").write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        choose_template(tokenizer, str(tmp_path / "x.jinja"))
    assert "\n" not in str(caught.value)


def test_a_template_without_end_is_ended(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_mixcpt.data.chat.templates.bounded", lambda: bounded(cpu_seconds=0.2))
    with pytest.raises(TemplateError, match="TookTooLongError: it takes too long"):
        render(tokenizer, ChatTemplate("x", NO_END), [Message("user", "question")])

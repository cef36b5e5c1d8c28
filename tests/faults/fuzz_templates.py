"""Hostile chat templates, and records of all sorts through them; see fuzz_targets.py."""

import functools
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from megatron_mixcpt.data.chat import templates
from megatron_mixcpt.data.chat.encoding import ChatEncoder
from megatron_mixcpt.data.chat.renderer import Bounds, Renderer
from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.data.records import Conversation, Message
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

CANARY = "canary"
JINJA = [
    "{{ messages[0]['content'] }}",
    "{{ messages[1]['content'] }}",
    "{% for m in messages %}{{ m.content }}",
    "{% endfor %}",
    "{% if loop.last %}",
    "{% endif %}",
    "{{ bos_token",
    "{{ 1 / 0 }}",
    "{{ {}[1] }}",
    "{{ m|tojson }}",
    "{{ m.content.format(m) }}",
    "{{ raise_exception('no\\nno') }}",
    "{% include 'x' %}",
    # Too much of time or memory.
    "{{ range(10**9) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 9**9**9 }}",
    "{{ 'a' * 10**11 }}",
    "{{ '%99999999999d' % 1 }}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    # Out of the sandbox.
    "{{ ''.__class__.__mro__ }}",
    f"{{{{ ''|attr('__class__') }}}}{{{{ dict.mro()[1].__subclasses__() }}}}touch {CANARY}",
    f"{{{{ lipsum.__globals__['os'].system('touch {CANARY}') }}}}",
    f"{{{{ cycler.__init__.__globals__['os'].system('touch {CANARY}') }}}}",
    f"{{{{ '{{0.__class__.__init__.__globals__}}'.format(raise_exception) }}}}touch {CANARY}",
]
TEXTS = st.text(max_size=12) | st.sampled_from(["", "<|im_end|>", "\ud800", "{{ 1 }}"])
# A second of the suite, not ten, and a quarter of a gigabyte.
SMALL_BOUNDS = Renderer(Bounds(0.2, 1 << 28))


def chat_template(draw: Any, folder: Path) -> None:
    """Templates that compute too much, escape, contradict themselves, or are none; each encodes a conversation."""
    pieces = draw(st.lists(st.sampled_from(JINJA) | st.text(max_size=5), max_size=4))
    whole = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" * draw(st.integers(0, 1))
    (folder / "x.jinja").write_bytes("".join([whole, *pieces]).encode("utf-8", "surrogatepass"))
    roles = st.sampled_from(["system", "user", "assistant"])
    turns = draw(st.lists(st.builds(Message, roles, TEXTS), max_size=4))
    with mock.patch.object(templates, "RENDERER", SMALL_BOUNDS):
        template = choose_template(tokenizer(), str(folder / "x.jinja"))
        ChatEncoder(tokenizer(), template, 64).encode_conversations([Conversation(tuple(turns))])


@functools.cache
def tokenizer() -> Any:
    """A tiny one, whose control tokens the records may spell."""
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_tokenizer(Path(folder))
        return load_tokenizer(folder)

"""What a template may compute is bounded in a process of its own; this process and its threads are untouched."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_mixcpt.data.chat import renderer as renderer_module
from megatron_mixcpt.data.chat import templates
from megatron_mixcpt.data.chat.renderer import Asked, Bounds, Renderer, RenderingError
from megatron_mixcpt.data.chat.templates import BUILT_IN_TEMPLATES, ChatTemplate, choose_template, render
from megatron_mixcpt.data.records import Message
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import ConfigError
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

DOUBLING = "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
NO_END = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "\ud800 \U000f0000 é\n"}]
WHOLE = Asked(MESSAGES, None, [(2, False)])
NOW = "2024-07-26T12:30:00"


def render_one(renderer: Renderer, text: str) -> str:
    """MESSAGES, rendered. Raises RenderingError."""
    (found,) = renderer.render(text, [WHOLE], {}, NOW)
    if isinstance(found, RenderingError):
        raise found
    return found[0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return load_tokenizer(save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def small():
    """A renderer of narrow bounds."""
    renderer = Renderer(Bounds(cpu_seconds=0.5, extra_bytes=1 << 27))
    yield renderer
    renderer.close()


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_it_renders_as_transformers_does(name: str, tokenizer) -> None:
    template = ChatTemplate(name, BUILT_IN_TEMPLATES[name])
    messages = [Message("user", "question\n"), Message("assistant", " an answer é \U000f0000")]
    turns = [{"role": message.role, "content": message.content} for message in messages]
    for generation_prompt in (False, True):
        expected = tokenizer.apply_chat_template(
            turns, chat_template=template.text, add_generation_prompt=generation_prompt, tokenize=False
        )
        assert render(tokenizer, template, messages, generation_prompt) == expected


DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }}" + BUILT_IN_TEMPLATES["chatml"]


def test_the_date_is_that_of_the_runs_first_start(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "dated.jinja").write_text(DATED)
    template = choose_template(tokenizer, str(tmp_path / "dated.jinja"), now=NOW)
    assert render(tokenizer, template, [Message("user", "Hi")]).startswith("26 Jul 2024 12:30:00<|im_start|>")
    assert template.uses_date and template.now == NOW
    # What a date changes, and only that, is told apart by the digest.
    digests = {
        (text, now): ChatTemplate("test", text, now).digest
        for text in (DATED, PLAIN)
        for now in (NOW, "2025-01-01T00:00:00")
    }
    assert len(set(digests.values())) == 3 and not ChatTemplate("test", PLAIN).uses_date
    assert choose_template(tokenizer, "zephyr").now[:2] == "20"


def test_a_template_that_fails_on_one_conversation_of_many_fails_there_alone(small: Renderer) -> None:
    """By raising, by the bounds of memory and of time, and by a helper that is killed: in one call."""
    text = (
        "{% for m in messages %}"
        "{% if m.content == 'raise' %}{{ raise_exception('no') }}{% endif %}"
        "{% if m.content == 'memory' %}{{ 'a' * 10**12 }}{% endif %}"
        "{% if m.content == 'time' %}" + NO_END + "{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    words = ["a", "raise", "b", "memory", "c", "time", "d"]
    asked = [Asked([{"role": "user", "content": word}], None, [(1, False), (0, True)]) for word in words]
    found = small.render(text, asked, {}, NOW)
    assert [each[0] if isinstance(each, list) else str(each).partition(":")[0] for each in found] == [
        "a",
        "no",
        "b",
        "MemoryError",
        "c",
        "TookTooLongError",
        "d",
    ]
    assert found[0] == ["a", ""]


def test_requests_are_split_over_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    monkeypatch.setattr(renderer_module, "BYTES_AT_ONCE", 100)
    asked = [Asked([{"role": "user", "content": str(number) * 30}], None, [(1, False)]) for number in range(5)]
    assert renderer.render(PLAIN, asked, {}, NOW) == [[str(number) * 30] for number in range(5)]
    renderer.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ 'a' * 10**12 }}", "MemoryError"),
        (DOUBLING, "MemoryError"),
        ("{{ range(10**9) }}", "OverflowError: Range too big"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 'a' * 10**7 }}", "it writes 10,000,000 characters"),
        (NO_END, "TookTooLongError: it takes too long"),
        ("a\n{% if %}", "x.jinja:2: the chat template cannot be rendered"),
    ],
)
def test_hostile_templates_are_refused_in_one_line(
    text: str, reason: str, tokenizer, small: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "RENDERER", small)
    (tmp_path / "x.jinja").write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        choose_template(tokenizer, str(tmp_path / "x.jinja"))
    assert "\n" not in str(caught.value)
    assert render_one(small, PLAIN) == "question\ud800 \U000f0000 é\n"  # and it goes on


def test_the_kernel_ends_a_template_that_hangs_within_one_instruction() -> None:
    renderer = Renderer(Bounds(cpu_seconds=0.05))
    render_one(renderer, PLAIN)
    # What no exception interrupts: the helper's timer is stopped, its limit of processor time is not.
    os.kill(renderer.helper_pid, signal.SIGXCPU)
    assert renderer._helper.process.wait() == -signal.SIGXCPU
    with pytest.raises(RenderingError, match="it takes too long"):
        render_one(renderer, PLAIN)
    assert render_one(renderer, PLAIN)
    renderer.close()


def test_this_process_keeps_its_memory_and_signals_while_a_template_renders() -> None:
    renderer = Renderer(Bounds(cpu_seconds=1.0))
    render_one(renderer, PLAIN)
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    refused = []

    def endless() -> None:
        try:
            render_one(renderer, NO_END)
        except RenderingError as error:
            refused.append(str(error))

    thread = threading.Thread(target=endless)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    assert len(np.empty(3 << 30, np.uint8)) == 3 << 30
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    thread.join()
    assert refused == ["TookTooLongError: it takes too long"]
    renderer.close()


def test_a_killed_helper_is_replaced() -> None:
    renderer = Renderer()
    render_one(renderer, PLAIN)
    first = renderer.helper_pid
    os.kill(first, signal.SIGKILL)
    assert render_one(renderer, PLAIN) == "question\ud800 \U000f0000 é\n"
    assert renderer.helper_pid != first
    renderer.close()


def test_a_forked_process_has_a_helper_of_its_own() -> None:
    renderer = Renderer()
    render_one(renderer, PLAIN)
    read_end, write_end = os.pipe()
    with renderer._lock:  # as if another thread were rendering
        child = os.fork()
        if child == 0:
            is_good = renderer.helper_pid is None and bool(render_one(renderer, PLAIN))
            os.write(write_end, b"1" if is_good else b"0")
            renderer.close()
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 1) == b"1"
    assert render_one(renderer, PLAIN)
    renderer.close()


def test_the_helper_ends_with_its_parent() -> None:
    program = (
        "from megatron_mixcpt.data.chat.renderer import Asked, Renderer\n"
        "import sys, time\n"
        "renderer = Renderer()\n"
        "renderer.render('x', [Asked([], None, [(0, False)])], {}, '2024-07-26')\n"
        "assert not {'torch', 'transformers', 'jinja2'} & set(sys.modules)\n"
        "print(renderer.helper_pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        helper = int(parent.stdout.readline())
        assert Path(f"/proc/{helper}").exists()
        assert "/torch/" not in Path(f"/proc/{helper}/maps").read_text()
        parent.kill()
    for _ in range(600):
        if not _is_running(helper):
            return
        time.sleep(0.05)
    pytest.fail("the helper is still there")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""What a server is asked before any question is sent to it, and the lines that refuse one."""

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.server import Server
from megatron_mixcpt.evaluation.models.server_settings import ServerSettings
from tests.unit.data.tokenizer_classes import save_model_tokenizer
from tests.unit.evaluation.models.openai_server import NAME, serving


def connect(url: str, tokenizer, name: str = NAME) -> Server:
    return Server.connect(ServerSettings(base_url=url, served_model=name), tokenizer)


def test_what_a_server_offers(model, tokenizer):
    with serving(model, tokenizer) as server:
        found = connect(server.url, tokenizer)
        assert (found.takes_tokens, found.max_length) == (True, None)
        found.check_log_probs("piqa", tokenizer)
    for kind in ("text", "mute"):
        with serving(model, tokenizer, kind) as server:
            found = connect(server.url, tokenizer)
            assert found.takes_tokens == (kind == "mute")
            with pytest.raises(ConfigError, match=f"{server.url}: tiny is served without .*, by which piqa is scored"):
                found.check_log_probs("piqa", tokenizer)


def test_what_is_refused(model, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(save_model_tokenizer(tmp_path, "sentencepiece"))
    with serving(model, tokenizer) as server:
        for url, asked, name, message in (
            (server.url, tokenizer, "big", f"--served-model big: {server.url} serves tiny, other; give one of these"),
            (server.url.removesuffix("/v1"), tokenizer, NAME, "404 Not Found: not taken here); check that the server"),
            (server.url, other, NAME, "give the folder of the model that is served"),
        ):
            with pytest.raises(ConfigError) as refused:
                connect(url, asked, name)
            assert message in str(refused.value) and "\n" not in str(refused.value)
        server.failures = [404]
        with pytest.raises(ConfigError, match="it completes no prompts"):
            connect(server.url, tokenizer)
        server.failures = [500]
        with pytest.raises(ConfigError, match="tiny gives no answer .500 Internal Server Error: not taken here"):
            connect(server.url, tokenizer)
    with pytest.raises(ConfigError, match=r"no answer \(.*refused.*\); check that the server runs"):
        connect(server.url, tokenizer)

"""What an OpenAI-compatible server offers, found out before any question is sent to it."""

import urllib.error
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.endpoint import Endpoint, refusal_of
from megatron_mixcpt.evaluation.models.server_settings import ServerSettings

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

PROBE = "Les 3 cafés naïfs coûtent 1,234.50 € -- def f(x):\n\treturn x ** 2"
"""A prompt whose tokens are of different numbers with different tokenizers."""
NOT_TAKEN = (400, 404, 405, 422)
"""Statuses of an answer to a request that a server does not know."""
LIST_SECONDS = 30.0
"""What a server may take to list its models."""


@dataclass(frozen=True)
class Server:
    """A server that has the model, and how it takes prompts."""

    settings: ServerSettings
    max_length: int | None
    """Tokens of a prompt and its answer together, where the server says so."""
    takes_tokens: bool
    """Whether a prompt may be token ids; if not, it is text, to which the server adds what its tokenizer adds."""

    @classmethod
    def connect(cls, settings: ServerSettings, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Ask a server for its models, and for one token after a prompt.

        Raises ConfigError where it cannot be reached, has no such model, completes no prompts, or has another
        tokenizer than ``tokenizer``.
        """
        endpoint = Endpoint(settings.base_url, settings.key)
        entry = _entry_of(endpoint, settings)
        ids = tokenizer.encode(PROBE)
        plain = tokenizer.encode(PROBE, add_special_tokens=False)
        # Text first: the ids of another tokenizer may be none of the model's.
        of_text = _complete(endpoint, settings, PROBE)
        if of_text is None:
            raise ConfigError(f"--base-url {settings.base_url}: it completes no prompts; serve it with vLLM or SGLang")
        _check_tokenizer(settings, of_text, {len(ids), len(plain), len(plain) + 1})
        takes_tokens = _complete(endpoint, settings, [ids]) is not None
        if not takes_tokens:
            _check_tokenizer(settings, of_text, {len(ids)})
        return cls(settings, entry.get("max_model_len"), takes_tokens)

    def check_log_probs(self, task: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise ConfigError unless the server returns log-probabilities of a prompt's tokens, which a task needs."""
        ids = tokenizer.encode(PROBE)
        answer = None
        if self.takes_tokens:
            options = {"echo": True, "logprobs": 1}
            answer = _complete(Endpoint(self.settings.base_url, self.settings.key), self.settings, [ids], **options)
        if not _has_log_probs(answer, len(ids)):
            raise ConfigError(
                f"--base-url {self.settings.base_url}: {self.settings.served_model} is served without the "
                f"log-probabilities of a prompt's tokens (echo with logprobs), by which {task} is scored; serve it "
                "with vLLM or SGLang, leave --base-url out, or remove the task"
            )


def _entry_of(endpoint: Endpoint, settings: ServerSettings) -> dict[str, Any]:
    """What the server says of the model. Raises ConfigError."""
    try:
        models = {
            entry["id"]: entry
            for entry in endpoint.call("/models", timeout=min(LIST_SECONDS, settings.timeout))["data"]
        }
    except OSError as error:
        key = "; name its key with --server-key" if getattr(error, "code", None) in (401, 403) else ""
        raise ConfigError(
            f"--base-url {endpoint.url}: no answer ({refusal_of(error)}); check that the server runs and that the "
            f"address ends as its own /models does, usually with /v1{key}"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"--base-url {endpoint.url}: {endpoint.address('/models')} is no list of models in the OpenAI form; check "
            "the address, which usually ends with /v1"
        ) from error
    if settings.served_model not in models:
        raise ConfigError(
            f"--served-model {settings.served_model}: {endpoint.url} serves {', '.join(models) or 'no model'}; give "
            "one of these names"
        )
    return models[settings.served_model]


def _complete(
    endpoint: Endpoint, settings: ServerSettings, prompt: str | list[list[int]], **options: Any
) -> dict[str, Any] | None:
    """The answer of one token to a text or a batch of token ids; None where such a request is not taken.

    Raises ConfigError.
    """
    body = {"model": settings.served_model, "prompt": prompt, "max_tokens": 1, "temperature": 0, **options}
    try:
        return endpoint.call("/completions", body, settings.timeout)
    except urllib.error.HTTPError as error:
        if error.code in NOT_TAKEN:
            return None
        reason = refusal_of(error)
    except (OSError, ValueError) as error:
        reason = refusal_of(error)
    raise ConfigError(f"--base-url {endpoint.url}: {settings.served_model} gives no answer ({reason}); see its log")


def _check_tokenizer(settings: ServerSettings, answer: dict[str, Any], expected: set[int]) -> None:
    """Raise ConfigError where the server counts other tokens in the prompt than the folder's tokenizer."""
    found = (answer.get("usage") or {}).get("prompt_tokens")
    if found not in expected:
        raise ConfigError(
            f"--base-url {settings.base_url}: {settings.served_model} reads a prompt as {found} tokens that the "
            f"tokenizer of --hf-model reads as {max(expected)}; give the folder of the model that is served"
        )


def _has_log_probs(answer: dict[str, Any] | None, num_tokens: int) -> bool:
    """Whether each token of the prompt but its first has a log-probability, and the best one beside it."""
    try:
        found = answer["choices"][0]["logprobs"]  # type: ignore[index] # None has no items, either
        own, best = found["token_logprobs"][1:], found["top_logprobs"][1:]
    except (LookupError, TypeError):
        return False
    return len(own) >= num_tokens - 1 and all(
        isinstance(value, float | int) and top for value, top in zip(own, best, strict=False)
    )

"""The model behind a server, asked through lm-eval's own API model in the tokens that the direct way sends."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import requests
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text, resolve_max_length

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.endpoint import Endpoint
from megatron_mixcpt.evaluation.models.progress import TaskProgress, count_questions
from megatron_mixcpt.evaluation.models.server import Server

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase


class Rendered(str):
    """A prompt that holds its special tokens already."""


class ServedModel(LocalCompletionsAPI):
    """Answers lm-eval's requests, and prompts of conversations."""

    def __init__(self, server: Server, folder: Path, tokenizer: "PreTrainedTokenizerBase"):
        """``folder``: of the model that is served; its config says how long a prompt may be, as for ``HFLM``."""
        from transformers import AutoConfig

        logging.getLogger("lm_eval.models").setLevel(logging.CRITICAL)  # it logs each attempt; the last one is reported
        settings = server.settings
        endpoint = Endpoint(settings.base_url, settings.key)
        longest = resolve_max_length(AutoConfig.from_pretrained(folder), tokenizer)
        super().__init__(
            model=settings.served_model,
            base_url=endpoint.address("/completions"),
            header=endpoint.headers,
            tokenizer_backend="huggingface",
            tokenizer=str(folder),
            tokenized_requests=server.takes_tokens,
            # lm-eval takes one token off.
            max_length=1 + min(longest, server.max_length or longest),
            num_concurrent=settings.num_concurrent,
            timeout=settings.timeout,
            max_retries=settings.attempts,
        )
        self.tokenizer = tokenizer
        self.add_bos_token = None
        self._server = server
        self.progress = TaskProgress()
        self.set_cache_hook(self.progress)

    def tok_encode(
        self,
        string: Any,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> Any:
        """Token ids of a prompt, or of each of several, as ``HFLM`` encodes them: with one BOS where there is any."""
        if not isinstance(string, str):
            return [self.tok_encode(text) for text in string]
        special = False if isinstance(string, Rendered) else add_special_tokens
        return HFLM.tok_encode(self, string, special, left_truncate_len)  # type: ignore[arg-type] # it reads nothing else

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request: its prompt, continued as its options say."""
        with self.progress.asking(count_questions(requests), len(requests)):
            return self._generate([request.args for request in requests])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each request's continuation given its context, and whether it is the greedy one."""
        with self.progress.asking(count_questions(requests), len(requests)), self._reported():
            return super().loglikelihood(requests, disable_tqdm=True)

    def reply(self, prompts: Sequence[str], sampling: Mapping[str, Any], seed: int) -> list[str]:
        """The answer to each prompt, which holds its special tokens; every prompt is sampled from ``seed`` anew."""
        self._seed = seed
        options = {**sampling, "max_gen_toks": sampling["max_new_tokens"], "until": []}
        del options["max_new_tokens"]
        with self.progress.asking(len(prompts), len(prompts)):
            return self._generate([(Rendered(prompt), options) for prompt in prompts])

    def _generate(self, items: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Answers, cut at the first stop as ``HFLM`` cuts them: some servers leave it in, or take four stops only."""
        asked = items if self._server.takes_tokens else [(self._as_text(*item), item[1]) for item in items]
        with self._reported():
            answers = super().generate_until([SimpleNamespace(args=item) for item in asked])  # type: ignore[misc] # its args are all it reads
        stops = [_stops_of(options, self.eos_string) for _, options in items]
        return [postprocess_generated_text(text, stop, None) for text, stop in zip(answers, stops, strict=True)]

    def _as_text(self, prompt: str, options: Mapping[str, Any]) -> str:
        """The text that a server reads as the tokens of ``prompt``. Raises ConfigError where there is none."""
        tokens = self.tok_encode(prompt)
        text = prompt.removeprefix(self.tokenizer.bos_token or "") if _adds_bos(self.tokenizer) else str(prompt)
        if self.tokenizer.encode(text) != tokens:
            raise ConfigError(
                f"{self._name}: it takes prompts as text only, and adds other special tokens to it than the prompt "
                "has; serve the model with vLLM or SGLang, which take token ids"
            )
        room = self.max_length - options.get("max_gen_toks", self._max_gen_toks)
        if len(tokens) > room:
            raise ConfigError(
                f"{self._name}: it takes prompts as text only, and one of {len(tokens)} tokens exceeds the {room} for "
                "which the model has room; give fewer --num-fewshot, or serve it with vLLM or SGLang"
            )
        return text

    def _create_payload(self, *positional: Any, **named: Any) -> dict[str, Any]:
        payload = super()._create_payload(*positional, **named)
        return {name: value for name, value in payload.items() if name != "stop" or value}

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        """Contexts are cut so that there is room for the one token that the server has to generate."""
        room = self.max_length - 1
        cut = [
            (text, context[max(0, len(context) + len(continuation) - room) :], continuation)
            for text, context, continuation in requests
        ]
        return super()._loglikelihood_tokens(cut, **options)

    @property
    def _name(self) -> str:
        return f"--base-url {self._server.settings.base_url}: {self._server.settings.served_model}"

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Raise ConfigError where a question inside is not answered."""
        try:
            yield
        except (requests.RequestException, aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        except (LookupError, TypeError, AssertionError) as error:
            reason = f"an answer is not of the OpenAI form, {type(error).__name__} {error}"
        else:
            return
        raise ConfigError(
            f"{self._name} did not answer a question in {self.max_retries} attempts ({reason}); see the server's log, "
            "and try a smaller --num-concurrent or a larger --server-timeout"
        )


def _stops_of(options: Mapping[str, Any], eos: str | None) -> list[str]:
    """What ends an answer; the options' own list stays as it is."""
    until = options.get("until") or []
    return handle_stop_sequences(until if isinstance(until, str) else list(until), eos)


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    return tokenizer.bos_token_id is not None and tokenizer.encode("x")[0] == tokenizer.bos_token_id

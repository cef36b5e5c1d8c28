"""Settings of ``tools/evaluate.py --base-url``: which server answers, and how it is asked."""

import os
from dataclasses import dataclass

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A server that answers the benchmark tasks and MT-Bench."""

    base_url: str = setting(default="", metavar="URL", decides=False)
    """OpenAI-compatible server (vLLM, SGLang, transformers serve) that answers in place of a model in this process,
    such as http://localhost:8000/v1; --hf-model then names the folder that it serves, for tokenizer and chat
    template."""
    served_model: str = setting(default="", metavar="NAME", decides=False)
    """Name of the model at the server."""
    key_variable: str = setting(default="", flag="--server-key", metavar="VARIABLE", decides=False)
    """Environment variable that holds the server's key. Default: none is sent."""
    num_concurrent: int = setting(default=8, decides=False)
    """Number of questions that the server is asked at the same time."""
    timeout: int = setting(default=600, flag="--server-timeout", metavar="SECONDS", decides=False)
    """Longest time that an answer may take."""
    attempts: int = setting(default=4, flag="--server-attempts", decides=False)
    """How often a question is sent before the evaluation fails."""

    def __post_init__(self) -> None:
        for flag, value in (
            ("--num-concurrent", self.num_concurrent),
            ("--server-timeout", self.timeout),
            ("--server-attempts", self.attempts),
        ):
            if value < 1:
                raise ConfigError(f"{flag} {value}: must be at least 1")
        if not self.base_url:
            if given := next((flag for flag, value in self._own_flags() if value), None):
                raise ConfigError(f"{given} is not used without --base-url; give the server's address, or remove it")
            return
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"--base-url {self.base_url}: expected an address that begins with http:// or https://")
        if not self.served_model:
            raise ConfigError(f"--base-url {self.base_url}: name the model that it serves with --served-model")
        if self.key_variable and not os.environ.get(self.key_variable):
            raise ConfigError(f"--server-key {self.key_variable}: this environment variable is not set; export it")

    def _own_flags(self) -> tuple[tuple[str, str], ...]:
        return ("--served-model", self.served_model), ("--server-key", self.key_variable)

    @property
    def key(self) -> str | None:
        """The server's key."""
        return os.environ.get(self.key_variable) if self.key_variable else None

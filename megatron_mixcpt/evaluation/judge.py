"""A language model behind an OpenAI-compatible endpoint that rates answers."""

import http.client
import re
import time
import urllib.error
from dataclasses import dataclass, field

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.endpoint import Endpoint

ATTEMPTS = 4
WAIT_SECONDS = 2.0
"""Before the second attempt; doubled before each further one."""
RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
BEST_RATING = 10.0


@dataclass(frozen=True)
class Judge:
    """Where the judge is and what it is called."""

    url: str
    """Up to what ``/chat/completions`` is appended to, for example ``https://api.openai.com/v1``."""
    model: str
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; in no message and no file."""

    def ask(self, prompt: str) -> str:
        """The judge's answer, at temperature 0. Raises ConfigError where several attempts give none."""
        wait = WAIT_SECONDS
        for attempt in range(ATTEMPTS):
            try:
                return self._post(prompt)
            except urllib.error.HTTPError as error:
                reason, is_passing = f"{error.code} {error.reason}", error.code == 429 or error.code >= 500
            except (OSError, http.client.HTTPException) as error:
                reason, is_passing = str(getattr(error, "reason", error)), True
            except (ValueError, LookupError, TypeError):
                reason, is_passing = "the answer is not of the OpenAI form", False
            if not is_passing or attempt == ATTEMPTS - 1:
                break
            time.sleep(wait)
            wait *= 2
        raise ConfigError(
            f"--judge-url {self.url}: {self.model} gives no answer ({reason}); check address, --judge-model and key"
        )

    def _post(self, prompt: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        answer = Endpoint(self.url, self.key).call("/chat/completions", body)
        content = answer["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError
        return content


def rating_of(judgement: str) -> float | None:
    """The last ``[[RATING]]`` in a judgement, from 1 to 10; None where there is none."""
    found = [float(number) for number in RATING.findall(judgement)]
    return found[-1] if found and 1 <= found[-1] <= BEST_RATING else None

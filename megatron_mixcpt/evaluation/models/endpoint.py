"""JSON over HTTP with an OpenAI-compatible server; nothing but the standard library."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and the key that it asks for."""

    url: str
    """What paths are appended to, for example ``https://api.openai.com/v1``."""
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; in no message and no file."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def address(self, path: str) -> str:
        """The address of ``/models``, ``/completions`` or another path."""
        return self.url.rstrip("/") + path

    def call(self, path: str, body: dict[str, Any] | None = None, timeout: float = TIMEOUT_SECONDS) -> Any:
        """What the server answers to a POST of ``body``, or to a GET where there is none.

        Raises HTTPError or another OSError where there is no answer, ValueError where it is not JSON.
        """
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address(path), content, self.headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)


def refusal_of(error: Exception) -> str:
    """Why a call failed, in a few words of one line; the server's own where it gave any."""
    if not isinstance(error, urllib.error.HTTPError):
        return str(getattr(error, "reason", error)).partition("\n")[0] or type(error).__name__
    try:
        said = error.read(2000).decode(errors="replace")
    except OSError:
        said = ""
    return f"{error.code} {error.reason}" + (f": {' '.join(said.split())[:300]}" if said.strip() else "")

"""A small OpenAI-compatible server over a tiny transformers model: one forward pass a token, without lm-eval."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "tiny"
LONGEST_STOP = 16
"""In tokens, at most."""


class OpenAIServer(ThreadingHTTPServer):
    """Completes prompts; ``kind`` says what it lacks: nothing, ``text`` token ids, ``mute`` log-probabilities."""

    daemon_threads = True

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str = ""):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer, self.kind = model, tokenizer, kind
        self.failures: list[int] = []
        """HTTP statuses of the next answers."""
        self.prompts: list[list[int]] = []
        """The tokens of every prompt that was completed."""
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any] | int:
        """The answer to a POST to /completions, or an HTTP status."""
        prompt = body["prompt"]
        if isinstance(prompt, list) and isinstance(prompt[0], list):
            [prompt] = prompt  # a batch
        if self.failures:
            return self.failures.pop()
        if self.kind == "text" and not isinstance(prompt, str):
            return 400
        ids = self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        self.prompts.append(ids)
        tokens = self._continued(ids, body)
        text = self.tokenizer.decode(tokens[len(ids) :], skip_special_tokens=True)
        if self.kind != "text":  # transformers serve leaves the stop in
            for stop in body.get("stop") or []:
                text = text.partition(stop)[0]
        choice: dict[str, Any] = {"index": 0, "text": text}
        if body.get("echo") and self.kind == "":
            choice["logprobs"] = self._log_probs(tokens)
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}

    @torch.no_grad()
    def _continued(self, ids: list[int], body: dict[str, Any]) -> list[int]:
        tokens, generator = list(ids), torch.Generator().manual_seed(body.get("seed", 0))
        cache, num_read = None, 0
        for _ in range(body["max_tokens"]):
            output = self.model(torch.tensor([tokens[num_read:]]), past_key_values=cache, use_cache=True)
            cache, num_read, logits = output.past_key_values, len(tokens), output.logits[0, -1].double()
            if temperature := body.get("temperature"):
                tokens.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)))
            else:
                tokens.append(int(logits.argmax()))
            written = self.tokenizer.decode(tokens[max(len(ids), num_read - LONGEST_STOP) :])
            if tokens[-1] == self.tokenizer.eos_token_id or any(stop in written for stop in body.get("stop") or []):
                break
        return tokens

    @torch.no_grad()
    def _log_probs(self, tokens: list[int]) -> dict[str, list]:
        log_probs = self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        own = [log_probs[place - 1, tokens[place]].item() for place in range(1, len(tokens))]
        best = [{str(row.argmax().item()): row.max().item()} for row in log_probs[:-1]]
        return {"token_logprobs": [None, *own], "top_logprobs": [None, *best]}


class Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def do_GET(self) -> None:
        self._send({"data": [{"id": NAME}, {"id": "other"}]} if self.path == "/v1/models" else 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers.get("Authorization"))
        self._send(self.server.complete(body) if self.path == "/v1/completions" else 404)

    def _send(self, answer: Any) -> None:
        content = b"not taken\nhere" if isinstance(answer, int) else json.dumps(answer).encode()
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str = "") -> Iterator[OpenAIServer]:
    """A server that listens inside the block."""
    with OpenAIServer(model, tokenizer, kind) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()

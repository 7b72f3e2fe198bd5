"""A server that answers as vLLM does, with our own generation: it serves the adapter that it was last sent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch

from tasks.config import SamplingConfig
from tasks.generation import generate, uniform_numbers
from tasks.models.adapters import load_adapter
from tasks.models.modeling import load_causal_lm
from tests.local_http import running

BASE = "base"


@dataclass
class StandIn:
    """What it serves, and what it was asked."""

    base: Path
    max_model_len: int = 64
    leaves_out_temperature: bool = False
    fails: bool = False
    url: str = ""
    adapters: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, request: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            if self.fails:
                return 500, {"error": {"message": "out of memory"}}
            if path == "/v1/models":
                names = [BASE, *self.adapters]
                return 200, {"data": [{"id": name, "max_model_len": self.max_model_len} for name in names]}
            if path == "/v1/load_lora_adapter":
                self.sent.append(request["lora_name"])
                self.adapters[request["lora_name"]] = load_adapter(
                    load_causal_lm(self.base), Path(request["lora_path"]), "default"
                )
                return 200, "Success"
            if path == "/v1/unload_lora_adapter":
                return (
                    (200, "Success") if self.adapters.pop(request["lora_name"], None) else (404, {"error": "unknown"})
                )
            return self.complete(request)

    def complete(self, request: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append(request)
        if request["model"] == BASE:
            return 200, {"choices": [{"logprobs": {"top_logprobs": [self.leaders(request)]}}]}
        if request["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist."}}
        sampling = SamplingConfig(response_length=request["max_tokens"], temperature=request["temperature"])
        responses = generate(
            self.adapters[request["model"]],
            [request["prompt"]],
            sampling,
            uniforms=uniform_numbers(1, request["max_tokens"], request["seed"]),
            stop_ids=request["stop_token_ids"],
        )
        [ids] = responses.unpadded()
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": responses.logprobs[0, : len(ids)].tolist()}}
        return 200, {"choices": [choice]}

    def leaders(self, request: dict[str, Any]) -> dict[str, float]:
        """The likeliest tokens after a prompt."""
        with torch.no_grad():
            logits = load_causal_lm(self.base)(input_ids=torch.tensor([request["prompt"]])).logits[0, -1]
        temperature = 1.0 if self.leaves_out_temperature else request["temperature"]
        top = torch.log_softmax(logits / temperature, dim=-1).topk(request["logprobs"])
        return {f"token {index}": value for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)}


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """The stand-in, running at its url."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*stand_in.answer(self.path, {}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*stand_in.answer(self.path, request))

        def reply(self, status: int, content: Any) -> None:
            is_text = isinstance(content, str)
            body = (content if is_text else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with running(Handler) as stand_in.url:
        yield stand_in

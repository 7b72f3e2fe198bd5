"""The options of a vLLM server that draws the responses. Nothing heavy is imported here."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from tasks.config import Config


def _require_server(url: str) -> str:
    """`url` without a slash at its end, if a server can stand there."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"url {url!r}: expected http://host[:port] or https://host[:port]")
    return url.rstrip("/")


class VllmConfig(Config):
    """A vLLM server that holds the policy's base; the policy's adapter is sent to it before each rollout.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank R --max-loras 1
        --logprobs-mode processed_logprobs
    """

    url: Annotated[str, AfterValidator(_require_server)] = "http://127.0.0.1:8000"
    """Where the server answers; /v1/completions is added."""
    adapter_folder: str | None = None
    """Where adapters are written for the server to read: a folder that is there for both under the same path. None =
    a temporary one, for a server on the same machine."""
    num_parallel: int = Field(64, ge=1)
    """Requests at once from each process, of one response each; the server batches them."""
    timeout_s: float = Field(600.0, gt=0)
    """Longest wait for one response, in seconds."""
    importance_cap: float | None = Field(2.0, ge=1)
    """The server rounds otherwise than the trainer: a token's advantage is weighted by the ratio of its probabilities
    here and there, at most this (truncated importance sampling; Ionides 2008; Yao et al. 2025). None = not weighted."""

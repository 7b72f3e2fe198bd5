"""The options of what draws the responses. Nothing heavy is imported here."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tasks.config import Config, SamplingConfig


def _require_server(url: str) -> str:
    """`url` without a slash at its end, if a server can stand there."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"url {url!r}: expected http://host[:port] or https://host[:port]")
    if parts.username or parts.password:
        raise ValueError("url holds a user name or password, which would be kept; put a proxy that adds it in between")
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


class EngineConfig(Config):
    """How responses are drawn, and by what."""

    sampling: SamplingConfig = SamplingConfig()
    """How responses are drawn."""
    rollout_engine: Literal["hf", "vllm"] = "hf"
    """What generates: hf = the policy itself, with transformers; vllm = a vLLM server, for LoRA."""
    vllm: VllmConfig = VllmConfig()
    """The server; used with rollout_engine vllm."""
    rollout_batch_size: int = Field(64, ge=1)
    """Responses that hf generates at once on each process; sizes the KV cache."""

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if self.sampling.min_new_tokens > self.sampling.response_length:
            raise ValueError(
                f"sampling.min_new_tokens {self.sampling.min_new_tokens} is larger than "
                f"sampling.response_length {self.sampling.response_length}."
            )
        if self.rollout_engine == "vllm" and (
            self.sampling.top_k or self.sampling.top_p < 1 or self.sampling.min_new_tokens
        ):
            raise ValueError(
                "rollout_engine vllm gives logprobs of what top_k, top_p and min_new_tokens leave, which cannot be "
                "compared with the policy's. Set top_k 0, top_p 1 and min_new_tokens 0."
            )
        return self

"""Responses from a vLLM server, which gets the policy's adapter as a LoRA request before each rollout.

The adapter is never merged into the server's weights, so its base stays what the trainer's is. The server is spoken to
through its OpenAI-compatible API: /v1/completions with tokens, /v1/load_lora_adapter, /v1/unload_lora_adapter.

Shapes: B episodes, R = the longest response allowed.
"""

import secrets
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks.actor_critic.models import POLICY, Models
from tasks.config import SamplingConfig
from tasks.engines.config import VllmConfig
from tasks.errors import InputError
from tasks.generation import Responses, cut_at_ends, make_stops
from tasks.models.adapters import adapter_state, write_adapter
from tasks.processes import Processes

WHOLE_DISTRIBUTION = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # no defaults of the server's
SEEDS = 2**31  # seeds of requests are below it
CONNECT_RETRIES = 3
COMMAND = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {base} --enable-lora --max-lora-rank {rank} --max-loras 1 "
    "--logprobs-mode processed_logprobs"
)
_SHOWN = 300


@dataclass(frozen=True)
class Completion:
    """A response as the server gives it."""

    ids: list[int]
    logprobs: list[float]  # of the distribution that was sampled from


class Server:
    """A vLLM server; what it refuses is an InputError, its absence or failure a ConnectionError."""

    def __init__(self, config: VllmConfig) -> None:
        self.config = config
        self.client = httpx.Client(
            base_url=config.url,
            timeout=config.timeout_s,
            transport=httpx.HTTPTransport(
                retries=CONNECT_RETRIES, limits=httpx.Limits(max_connections=config.num_parallel)
            ),
        )

    def models(self) -> list[dict[str, Any]]:
        """What it serves; the first is the base."""
        return self._ask("GET", "/v1/models")["data"]

    def load(self, name: str, folder: Path) -> None:
        """Make it serve the adapter in `folder` under a name that it has not heard."""
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload(self, name: str) -> None:
        """Make it forget an adapter."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """The one choice that answers a completion request."""
        return self._ask("POST", "/v1/completions", request)["choices"][0]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self.client.request(method, path, json=body)
        except httpx.RequestError as error:
            raise ConnectionError(
                f"vllm.url: no answer from {self.config.url}{path}: {type(error).__name__}: {error}. Start the server "
                "or raise vllm.timeout_s; a run goes on from its checkpoint."
            ) from error
        if not response.is_success:
            failure = ConnectionError if response.is_server_error else InputError
            raise failure(
                f"vllm.url: {self.config.url}{path} answered {response.status_code}: {response.text:.{_SHOWN}}"
            )
        return response.json() if "json" in response.headers.get("Content-Type", "") else response.text


class VllmEngine:
    """The engine. All processes ask the same server; the first sends the adapter."""

    def __init__(
        self,
        config: VllmConfig,
        models: Models,
        sampling: SamplingConfig,
        stop_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        processes: Processes,
    ) -> None:
        self.config, self.models, self.sampling, self.processes = config, models, sampling, processes
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.folder = tempfile.TemporaryDirectory(prefix="adapters-", dir=config.adapter_folder)
        self.server = Server(config)
        # A server keeps what it computed under a name, so none is used twice, by no run.
        self.run_number = _drawn_together(processes)
        self.num_sent = 0

    def __call__(self, prompts: Sequence[Sequence[int]], uniforms: Tensor) -> Responses:
        name = self._send_policy()
        seeds = (uniforms[:, 0] * SEEDS).long().tolist()
        requests = [self._request(name, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        with ThreadPoolExecutor(self.config.num_parallel) as pool:
            completions = [read_completion(choice) for choice in pool.map(self.server.complete, requests)]
        self.processes.wait()  # the adapter is replaced only after every process has its responses
        return self._padded(completions)

    def _send_policy(self) -> str:
        """The name under which the server now has the policy's adapter; the one before is gone."""
        name, former = (f"policy-{self.run_number}-{number}" for number in (self.num_sent, self.num_sent - 1))
        if self.processes.is_main:
            adapters, folder = self.models.policy_adapters, Path(self.folder.name).resolve()
            assert adapters is not None
            if self.num_sent:
                self.server.unload(former)
                shutil.rmtree(folder / former)
            write_adapter(folder / name, adapter_state(adapters, POLICY), adapters.peft_config[POLICY])
            self.server.load(name, folder / name)
        self.num_sent += 1
        self.processes.wait()
        return name

    def _request(self, model: str, prompt: Sequence[int], seed: int) -> dict[str, Any]:
        sampling = self.sampling
        return {
            "model": model,
            "prompt": list(prompt),
            "seed": seed,
            "max_tokens": sampling.response_length,
            "temperature": sampling.temperature,
            "stop_token_ids": list(self.stop_ids),
            "stop": list(sampling.stop_strings),
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "return_token_ids": True,
            **WHOLE_DISTRIBUTION,
        }

    def _padded(self, completions: Sequence[Completion]) -> Responses:
        device, length = self.processes.device, self.sampling.response_length
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(completions), length), pad, dtype=torch.long, device=device)
        logprobs = torch.zeros(ids.shape, device=device)
        for row, completion in enumerate(completions):
            num_tokens = len(completion.ids)
            ids[row, :num_tokens] = torch.tensor(completion.ids, device=device)
            logprobs[row, :num_tokens] = torch.tensor(completion.logprobs, device=device)
        stops = make_stops(self.stop_ids, self.sampling, self.tokenizer, device)
        responses = cut_at_ends(ids, logprobs, stops, pad)
        for completion, num_tokens in zip(completions, responses.mask.sum(dim=1).tolist(), strict=True):
            if num_tokens > len(completion.ids):
                raise InputError(
                    f"vllm.url: a response ended after {len(completion.ids)} tokens with {completion.ids[-1]}, which "
                    "is no end here. Start the server with the policy's generation config and tokenizer."
                )
        return responses


def check_server(config: VllmConfig, prompt: Sequence[int], num_tokens: int, base: str, rank: int) -> None:
    """Raise InputError unless a fitting server is there: for `num_tokens` of prompt and response, and with adapters.

    `prompt` is any that makes some token likelier than another; `base` and `rank` (of the adapter) are for the command
    in the message.
    """
    if config.adapter_folder is not None and not Path(config.adapter_folder).is_dir():
        raise InputError(
            f"vllm.adapter_folder: {config.adapter_folder} is no folder. Make it where the server sees it."
        )
    command = COMMAND.format(base=base, rank=rank)
    server = Server(config)
    try:
        served = server.models()[0]
    except ConnectionError as error:
        raise InputError(f"{error} For example: {command}") from error
    longest = served.get("max_model_len")
    if longest is not None and longest < num_tokens:
        raise InputError(
            f"vllm.url: the server takes {longest} tokens, prompt and response together, but they are up to "
            f"{num_tokens}. Start it with --max-model-len {num_tokens}."
        )
    if not _reports_what_it_samples(server, served["id"], prompt):
        raise InputError(
            "vllm.url: the server's logprobs leave out the temperature, so they cannot be compared with the trainer's. "
            f"Start it with --logprobs-mode processed_logprobs: {command}"
        )


def read_completion(choice: dict[str, Any]) -> Completion:
    """A choice of the server's answer; raises InputError if it holds no tokens with logprobs."""
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not ids or not logprobs or len(ids) != len(logprobs) or None in logprobs:
        raise InputError(
            "vllm.url: the answer should hold token_ids and as many logprobs.token_logprobs (vLLM 0.11 or later), got "
            f"{choice!r:.{_SHOWN}}"
        )
    return Completion(ids, logprobs)


def _reports_what_it_samples(server: Server, model: str, prompt: Sequence[int]) -> bool:
    """Whether logprobs follow the temperature: at 2 the likeliest token's lead over the next one is half that at 1."""
    leads = []
    for temperature in (1.0, 2.0):
        request = {"model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": temperature, "logprobs": 2}
        choice = server.complete(request | WHOLE_DISTRIBUTION)
        first, second = sorted(choice["logprobs"]["top_logprobs"][0].values(), reverse=True)[:2]
        leads.append(first - second)
    return leads[1] < 0.75 * leads[0]


def _drawn_together(processes: Processes) -> int:
    """A number that no other run has, the same on every process."""
    number = secrets.randbits(48) if processes.is_main else 0
    return int(processes.sum_in_place(torch.tensor(number, device=processes.device)).item())

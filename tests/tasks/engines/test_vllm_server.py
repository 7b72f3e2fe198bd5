"""The engine against a real vLLM server, which needs an environment of its own: VLLM_COMMAND is its `vllm`."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from torch.testing import assert_close

from infra.services import free_port
from tasks.engines.vllm import Server
from tasks.errors import InputError
from tasks.models.modeling import save_model
from tasks.ppo.config import PPOConfig
from tasks.ppo.rollout import Run, roll_out
from tasks.ppo.setup import set_up
from tasks.prompts import Prompt, batch_of
from tests.tasks.ppo import tiny

COMMAND = os.environ.get("VLLM_COMMAND", "")
START_S = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(COMMAND), reason="VLLM_COMMAND does not name vLLM's command"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads are as wide as vLLM wants them."""
    folder = tmp_path_factory.mktemp("policy")
    save_model(folder, tiny.make_model(hidden_size=64, num_attention_heads=1), tiny.make_tokenizer())
    return folder


def serve(policy: Path, log: Path, *options: str) -> Iterator[str]:
    port = free_port(8000)
    command = [COMMAND, "serve", str(policy), "--port", str(port), "--dtype", "float32", "--enable-lora"]
    command += ["--max-lora-rank", "8", "--max-loras", "1", "--enforce-eager", *options]
    environment = os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    yield from serve(policy, log, "--logprobs-mode", "processed_logprobs")


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"vLLM did not start:\n{log.read_text()[-4000:]}")


def make_run(world: dict[str, Path], policy: Path, server: str) -> tuple[Run, list[Prompt]]:
    """A run whose policy has left the server's base, and the prompts of an iteration."""
    options = {
        "batch_size": 16,
        "lora": {"r": 8},
        "value_init": "base",
        "sampling": {"response_length": 9, "temperature": 0.7},
        "rewards": [{"type": "function", "function": "tests.tasks.ppo.tiny:count_favourite"}],
        "rollout_engine": "vllm",
        "vllm": {"url": server},
    }
    inputs = {"data": world["data"], "policy": policy}
    run, prompts = set_up(PPOConfig.model_validate(options), inputs, Path("unused"))
    move_policy(run)
    return run, batch_of(prompts.train, 0, run.config.batch_size, 0, None)


def move_policy(run: Run) -> None:
    with torch.no_grad():
        for parameter in run.models.trainable["policy"].values():
            parameter.add_(0.05)


def test_the_server_samples_from_the_policy_of_the_moment(world, policy, server) -> None:
    run, prompts = make_run(world, policy, server)
    rollouts = []
    for number in range(2):
        rollout = roll_out(run, prompts, "rollout", number)
        assert_close(rollout.generation_logprobs, rollout.old_logprobs, rtol=1e-3, atol=1e-4)
        assert (rollout.old_logprobs - rollout.ref_logprobs).abs().max() > 0.05
        rollouts.append(rollout)
        move_policy(run)
    assert 0 < rollouts[0].ended.sum() < len(prompts)
    assert [model["id"] for model in Server(run.config.vllm).models()][1:] == [f"policy-{run.engine.run_number}-1"]


def test_the_key_decides_what_is_drawn(world, policy, server) -> None:
    run, prompts = make_run(world, policy, server)
    first, same, other = (roll_out(run, prompts, "rollout", number).response_ids for number in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_server_whose_logprobs_leave_out_the_temperature_is_refused(world, policy, tmp_path) -> None:
    for url in serve(policy, tmp_path / "log"):
        with pytest.raises(InputError, match="--logprobs-mode processed_logprobs"):
            make_run(world, policy, url)

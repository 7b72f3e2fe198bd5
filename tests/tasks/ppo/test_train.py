import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tasks.errors import InputError
from tasks.model_files import kind_of
from tasks.ppo import train as training
from tasks.ppo.config import PPOConfig
from tasks.ppo.models import POLICY, VALUE
from tasks.ppo.optimizer import Optimizer
from tasks.ppo.setup import set_up
from tasks.tracking import read_metrics
from tests.tasks.ppo.tiny import write_config

FAVOURITE = "tests.tasks.ppo.tiny:count_favourite"
OPTIONS: dict[str, Any] = {
    "total_episodes": 16,
    "batch_size": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "kl_coef": 0.5,
    "learning_rate": 1e-2,
    "value_learning_rate": 1e-2,
    "warmup_ratio": 0.25,
    "sampling": {"response_length": 6},
    "lora": {"r": 4},
    "evaluate_every": 0,
    "num_eval_prompts": 2,
    "reward_function": FAVOURITE,
}


def options(**changes: Any) -> PPOConfig:
    return PPOConfig.model_validate(OPTIONS | changes)


def trained(world: dict[str, Path], output: Path, config: PPOConfig, *names: str) -> dict[str, Tensor]:
    """Policy's and value model's parameters after the run, as main trains them, without its report."""
    inputs = {name: world[name] for name in ("data", "policy", *names)}
    output.mkdir(exist_ok=True)
    run, prompts = set_up(config, inputs)
    optimizer = Optimizer(run.models.trainable, config, run.processes)
    progress = training._resume(run, optimizer, output)
    training.train(run, optimizer, prompts, progress, output)
    return {name: parameter.detach().clone() for name, parameter in optimizer.named.items()}


def differ(one: dict[str, Tensor], other: dict[str, Tensor], part: str) -> bool:
    names = {name for name in (*one, *other) if name.startswith(part)}
    return any(name not in one or name not in other or not torch.equal(one[name], other[name]) for name in names)


@pytest.fixture(scope="module")
def plain(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained(world, tmp_path_factory.mktemp("plain"), options())


BOTH, POLICY_ONLY, VALUE_ONLY = (POLICY, VALUE), (POLICY,), (VALUE,)
KNOBS = [
    ({"total_episodes": 24}, BOTH),
    ({"batch_size": 4}, BOTH),
    ({"num_mini_batches": 1}, BOTH),
    ({"num_ppo_epochs": 1}, BOTH),
    ({"kl_coef": 0.1}, BOTH),
    ({"missing_eos_penalty": 1.0}, BOTH),
    ({"gamma": 0.9}, BOTH),
    ({"lam": 0.5}, BOTH),
    ({"cliprange": 1e-3}, POLICY_ONLY),
    ({"cliprange_value": 1e-3}, VALUE_ONLY),
    ({"learning_rate": 1e-3}, BOTH),
    ({"value_learning_rate": 1e-3}, BOTH),
    ({"lr_schedule": "cosine"}, BOTH),
    ({"lr_schedule": "constant"}, BOTH),
    ({"warmup_ratio": 0.5}, BOTH),
    ({"max_grad_norm": 1e-6}, BOTH),
    ({"sampling": {"response_length": 5}}, BOTH),
    ({"sampling": {"response_length": 6, "temperature": 0.5}}, BOTH),
    ({"sampling": {"response_length": 6, "top_k": 2}}, BOTH),
    ({"sampling": {"response_length": 6, "top_p": 0.5}}, BOTH),
    ({"sampling": {"response_length": 6, "min_new_tokens": 6}}, BOTH),
    ({"lora": {"r": 2}}, BOTH),
    ({"lora": {"r": 4, "alpha": 8}}, BOTH),
    ({"lora": {"r": 4, "target_modules": ["q_proj"]}}, BOTH),
    ({"models": "separate"}, BOTH),
    ({"dtype": "bfloat16"}, BOTH),
    ({"seed": 1}, BOTH),
    ({"reward_function": "tasks.rewards:gsm8k_reward_fn"}, BOTH),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "parts"), KNOBS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_every_knob_changes_what_is_trained(world, plain, tmp_path, changes, parts) -> None:
    # After the first iteration policy and value model see each other's changes in the next rollout.
    config = options(**({"total_episodes": 8} if parts != BOTH else {}) | changes)
    reference = plain if parts == BOTH else trained(world, tmp_path / "plain", options(total_episodes=8))
    tensors = trained(world, tmp_path / "changed", config)
    assert [part for part in (POLICY, VALUE) if differ(reference, tensors, part)] == list(parts)


def test_the_value_coefficient_scales_the_value_gradient_alone(world, tmp_path) -> None:
    norms = []
    for vf_coef in (0.1, 0.5):
        output = tmp_path / str(vf_coef)
        trained(world, output, options(total_episodes=8, num_mini_batches=1, num_ppo_epochs=1, vf_coef=vf_coef))
        norms.append([read_metrics(output)[-1][name] for name in ("policy_grad_norm", "value_grad_norm")])
    assert norms[1] == pytest.approx([norms[0][0], 5 * norms[0][1]], rel=1e-5)


def test_what_only_sizes_the_memory_does_not_change_what_is_trained(world, plain, tmp_path) -> None:
    changed = trained(world, tmp_path, options(rollout_batch_size=3, micro_batch_tokens=20))
    for name, tensor in plain.items():
        assert_close(changed[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_bits(world, plain, tmp_path) -> None:
    again = trained(world, tmp_path, options(checkpoint_every=1, keep_checkpoints=1, num_sample_generations=0))
    assert not differ(plain, again, POLICY)
    assert not differ(plain, again, VALUE)


def test_what_is_only_watched_is_written_and_changes_nothing(world, plain, tmp_path) -> None:
    changes = {"evaluate_every": 1, "num_eval_prompts": 3, "num_sample_generations": 2}
    watched = trained(world, tmp_path, options(**changes))
    assert not differ(plain, watched, POLICY)
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records if "eval_score" in record] == [0, 1, 2]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 0, 1, 1, 2, 2]


def test_the_first_step_starts_at_ratio_one_and_takes_the_asked_number_of_steps(world, tmp_path) -> None:
    trained(world, tmp_path, options(total_episodes=8, num_mini_batches=1, num_ppo_epochs=1))
    record = read_metrics(tmp_path)[-1]
    assert record["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert record["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert record["clip_fraction"] == 0.0
    assert record["generation_gap"] < 1e-5
    assert record["kl"] == pytest.approx(0.0, abs=1e-5)  # the policy still is the reference


@pytest.mark.parametrize("models", ["shared", "separate"])
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(world, tmp_path, monkeypatch, models) -> None:
    config = options(models=models, total_episodes=32, checkpoint_every=2, evaluate_every=1)
    undisturbed = trained(world, tmp_path / "a", config)
    iterate, finished = training.iterate, []

    def broken(*arguments: Any) -> Any:
        if len(finished) == 3:
            raise KeyboardInterrupt
        finished.append(1)
        return iterate(*arguments)

    monkeypatch.setattr(training, "iterate", broken)
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path / "b", config)
    monkeypatch.setattr(training, "iterate", iterate)
    resumed = trained(world, tmp_path / "b", config)
    assert not differ(undisturbed, resumed, POLICY)
    assert not differ(undisturbed, resumed, VALUE)
    logs = [read_metrics(tmp_path / name) for name in "ab"]
    assert [record["step"] for record in logs[1]] == [0, 1, 2, 3, 4]
    assert [record.get("eval_score") for record in logs[0]] == [record.get("eval_score") for record in logs[1]]
    assert (tmp_path / "a/samples.jsonl").read_text() == (tmp_path / "b/samples.jsonl").read_text()


def test_sigterm_ends_after_the_iteration_with_a_checkpoint_and_status_143(world, tmp_path, monkeypatch) -> None:
    iterate = training.iterate

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return iterate(*arguments)

    monkeypatch.setattr(training, "iterate", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        trained(world, tmp_path, options())
    assert exit_.value.code == 143
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_not_finite_stops_the_run(world, tmp_path) -> None:
    with pytest.raises(InputError, match=r"Iteration 1: .* is (nan|inf). Lower learning_rate"):
        trained(world, tmp_path, options(models="separate", learning_rate=1e30, value_learning_rate=1e30))


def test_a_score_that_is_not_finite_stops_the_run(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.tasks.ppo.tiny.count_favourite", lambda prompts, **_: [float("nan")] * len(prompts))
    with pytest.raises(InputError, match=f"{FAVOURITE} gave the score nan for prompt 0"):
        trained(world, tmp_path, options())


@pytest.mark.slow
@pytest.mark.parametrize("models", ["shared", "separate"])
def test_the_output_is_an_actor_critic_with_a_report(world, tmp_path, models) -> None:
    inputs = {name: world[name] for name in ("data", "policy", "reward_model")}
    training.main(options(models=models, reward_function=None), inputs, tmp_path)
    assert kind_of(tmp_path) == "actor_critic"
    assert (tmp_path / "curves.png").stat().st_size > 1000
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_episodes"] == 16
    assert report["num_steps"] == 8
    assert set(report["seconds"]) == {"evaluate", "rollout", "score", "update"}
    records = read_metrics(tmp_path)
    assert report["score_before"] == records[0]["eval_score"]
    assert report["score_after"] == records[-1]["eval_score"]


def launch(world: dict[str, Path], output: Path, num_processes: int, **changes: Any) -> list[dict[str, float]]:
    """The metrics of a run under `accelerate launch` on the CPU."""
    output.mkdir()
    config = write_config(output / "config.json", **OPTIONS | changes)
    root = Path(__file__).parents[3]
    accelerate_config = root / "infra" / "accelerate" / ("cpu.yaml" if num_processes == 1 else "cpu_2.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_config), "-m"]
    command += ["tasks.ppo.train", "--config", str(config), "--output", str(output)]
    for name in ("data", "policy"):
        command += ["--input", f"{name}={world[name]}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_metrics(output)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(world, tmp_path) -> None:
    changes = {"learning_rate": 1e-3, "value_learning_rate": 1e-3, "num_eval_prompts": 5}
    one, two = (launch(world, tmp_path / str(count), count, **changes) for count in (1, 2))
    assert len(one) == len(two) == 3
    assert [json.loads((tmp_path / name / "report.json").read_text())["num_processes"] for name in "12"] == [1, 2]
    for alone, together in zip(one, two, strict=True):
        timeless = [name for name in alone if not name.endswith(("_s", "time"))]
        assert {name: together[name] for name in timeless} == pytest.approx(
            {name: alone[name] for name in timeless}, rel=1e-3, abs=1e-4
        )
    samples = [(tmp_path / name / "samples.jsonl").read_text().splitlines()[:4] for name in ("1", "2")]
    assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.parametrize(("models", "learning_rate"), [("shared", 1e-2), ("separate", 2e-3)])
def test_it_learns_to_say_the_favourite_word(world, tmp_path, models, learning_rate) -> None:
    changes = {"total_episodes": 960, "batch_size": 32, "num_ppo_epochs": 4, "kl_coef": 0.02}
    rates = {"learning_rate": learning_rate, "value_learning_rate": learning_rate, "num_eval_prompts": 12}
    trained(world, tmp_path, options(models=models, sampling={"response_length": 10}, **changes, **rates))
    records = read_metrics(tmp_path)
    assert records[0]["eval_score"] < 1.0
    assert records[-1]["eval_score"] > 3.0

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

from tasks.actor_critic.folder import load_actor_critic
from tasks.actor_critic.models import POLICY, VALUE
from tasks.checkpoints import read_tensors
from tasks.errors import InputError
from tasks.models.model_files import kind_of
from tasks.ppo import train as training
from tasks.ppo.config import PPOConfig
from tasks.ppo.rollout import Run
from tasks.ppo.setup import load_callbacks, set_up
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
    "rewards": [{"type": "function", "function": FAVOURITE}],
}


def options(**changes: Any) -> PPOConfig:
    return PPOConfig.model_validate(OPTIONS | changes)


def trained(world: dict[str, Path], output: Path, config: PPOConfig, *names: str) -> dict[str, Tensor]:
    """Policy's and value model's parameters after the run, as main trains them, without its report."""
    inputs = {name.rpartition("_as_")[2]: world[name.partition("_as_")[0]] for name in ("data", "policy", *names)}
    output.mkdir(exist_ok=True)
    run, prompts = set_up(config, inputs, output)
    optimizer = training.make_optimizer(run)
    progress = training.resume(run, optimizer, output)
    training.train(run, optimizer, prompts, progress, output, load_callbacks(config))
    return {name: parameter.detach().clone() for name, parameter in optimizer.stepped.items()}


def differ(one: dict[str, Tensor], other: dict[str, Tensor], part: str) -> bool:
    names = {name for name in (*one, *other) if name.startswith(part)}
    return any(name not in one or name not in other or not torch.equal(one[name], other[name]) for name in names)


@pytest.fixture(scope="module")
def plain(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained(world, tmp_path_factory.mktemp("plain"), options())


@pytest.fixture(scope="module")
def one_iteration(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained(world, tmp_path_factory.mktemp("one"), options(total_episodes=8))


BOTH, POLICY_ONLY, VALUE_ONLY = (POLICY, VALUE), (POLICY,), (VALUE,)
KNOBS = [
    # What is trained
    ({"tuning": "full"}, BOTH),
    ({"tuning": "freeze", "trainable_layers": 1}, BOTH),
    ({"trainable_layers": 1}, BOTH),
    ({"lora": {"r": 2}}, BOTH),
    ({"lora": {"r": 4, "alpha": 8}}, BOTH),
    ({"lora": {"r": 4, "target_modules": ["q_proj"]}}, BOTH),
    ({"lora": {"r": 4, "use_dora": True}}, BOTH),
    ({"lora": {"r": 4, "use_rslora": True}}, BOTH),
    ({"value_model": "head"}, BOTH),
    ({"value_model": "separate"}, VALUE_ONLY),
    ({"reference_decay": 0.5}, BOTH),
    ({"dtype": "bfloat16"}, BOTH),
    # How much
    ({"total_episodes": 24}, BOTH),
    ({"batch_size": 4}, BOTH),
    ({"num_mini_batches": 1}, BOTH),
    ({"num_ppo_epochs": 1}, BOTH),
    ({"target_kl": 1e-6}, BOTH),
    ({"ratio_threshold": 1.0001}, BOTH),
    ({"value_pretraining_iterations": 1}, BOTH),
    # Prompts and rollouts
    ({"max_prompt_length": 3}, BOTH),
    ({"conversation_template": {"chat_template": "{% for m in messages %}w3 {{ m.content }}{% endfor %}"}}, BOTH),
    ({"sampling": {"response_length": 5}}, BOTH),
    ({"sampling": {"response_length": 6, "temperature": 0.5}}, BOTH),
    ({"sampling": {"response_length": 6, "top_k": 2}}, BOTH),
    ({"sampling": {"response_length": 6, "top_p": 0.5}}, BOTH),
    ({"sampling": {"response_length": 6, "min_new_tokens": 6}}, BOTH),
    ({"sampling": {"response_length": 6, "stop_strings": ["w7"]}}, BOTH),
    ({"seed": 1}, BOTH),
    # Rewards
    ({"rewards": [{"type": "function", "function": "gsm8k_reward_fn"}]}, BOTH),
    ({"rewards": [{"type": "function", "function": FAVOURITE, "weight": 2.0}]}, BOTH),
    ({"score_norm": True}, BOTH),
    ({"score_clip": 0.5}, BOTH),
    ({"missing_eos_penalty": 1.0}, BOTH),
    ({"missing_eos_score": -1.0}, BOTH),
    ({"whiten_rewards": True}, BOTH),
    ({"kl_coef": 0.1}, BOTH),
    ({"kl_estimator": "k3"}, BOTH),
    ({"kl_estimator": "k2"}, BOTH),
    ({"kl_in": "loss", "kl_estimator": "k2"}, BOTH),
    ({"kl_target": 1e-3, "kl_horizon": 16}, BOTH),
    ({"gamma": 0.9}, BOTH),
    ({"lam": 0.5}, BOTH),
    ({"value_lam": 1.0}, VALUE_ONLY),
    ({"lam_length_alpha": 0.5}, POLICY_ONLY),
    # Losses
    ({"cliprange": 1e-3}, POLICY_ONLY),
    ({"cliprange_high": 10.0}, POLICY_ONLY),
    ({"dual_clip": 1.0001}, POLICY_ONLY),
    ({"cliprange_value": 1e-3}, VALUE_ONLY),
    ({"cliprange_value": None}, VALUE_ONLY),
    ({"entropy_coef": 0.1}, POLICY_ONLY),
    ({"ptx_coef": 0.5}, POLICY_ONLY),
    # Optimisation
    ({"learning_rate": 1e-3}, POLICY_ONLY),
    ({"value_learning_rate": 1e-3}, VALUE_ONLY),
    ({"lr_schedule": "cosine"}, BOTH),
    ({"lr_schedule": "constant"}, BOTH),
    ({"value_lr_schedule": "constant"}, VALUE_ONLY),
    ({"warmup_ratio": 0.5}, BOTH),
    ({"value_warmup_ratio": 0.5}, VALUE_ONLY),
    ({"adam_beta1": 0.5}, BOTH),
    ({"adam_beta2": 0.9}, BOTH),
    ({"adam_epsilon": 1e-2}, BOTH),
    ({"weight_decay": 1.0}, BOTH),
    ({"max_grad_norm": 1e-6}, BOTH),
]
# In the first iteration the policy is its reference, values are 0 and whitening takes the score's scale away.
TWO_ITERATIONS = {
    "kl_coef", "kl_estimator", "kl_target", "reference_decay", "rewards", "score_norm", "total_episodes",
    "value_pretraining_iterations",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "parts"), KNOBS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_every_knob_changes_what_it_should_and_nothing_else(
    world, plain, one_iteration, tmp_path, changes, parts
) -> None:
    # After the first iteration policy and value model see each other's changes in the next rollout.
    takes_two = not TWO_ITERATIONS.isdisjoint(changes)
    tensors = trained(world, tmp_path, options(**({} if takes_two else {"total_episodes": 8}) | changes))
    reference = plain if takes_two else one_iteration
    assert [part for part in (POLICY, VALUE) if differ(reference, tensors, part)] == list(parts)


def test_the_list_of_knobs_is_complete() -> None:
    tested = {name for changes, _ in KNOBS for name in changes}
    elsewhere = {
        "vf_coef", "rollout_batch_size", "micro_batch_tokens", "gradient_checkpointing", "prompt_proportions",
        "evaluate_every", "num_eval_prompts", "num_sample_generations", "checkpoint_every", "keep_checkpoints",
        "best_metric", "use_best", "trackers", "callbacks", "ptx_batch_size", "value_init", "start_policy",
        "start_value", "reference_model", "rollout_engine", "vllm",
        "old_logprobs", "guard",
    }  # fmt: skip
    assert tested | elsewhere == set(PPOConfig.model_fields)


def test_the_value_coefficient_scales_the_value_gradient_alone(world, tmp_path) -> None:
    norms = []
    for vf_coef in (0.1, 0.5):
        output = tmp_path / str(vf_coef)
        trained(world, output, options(total_episodes=8, num_mini_batches=1, num_ppo_epochs=1, vf_coef=vf_coef))
        norms.append([read_metrics(output)[-1][name] for name in ("policy_grad_norm", "value_grad_norm")])
    assert norms[1] == pytest.approx([norms[0][0], 5 * norms[0][1]], rel=1e-5)


@pytest.mark.slow
def test_what_only_sizes_the_memory_does_not_change_what_is_trained(world, plain, tmp_path) -> None:
    changed = trained(
        world, tmp_path, options(rollout_batch_size=3, micro_batch_tokens=20, gradient_checkpointing=True)
    )
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


def slow(*values: Any) -> list[Any]:
    """Parameters for the slow part."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


RESUMED = [
    {},
    {"tuning": "full", "dtype": "bfloat16", "value_pretraining_iterations": 2},
    {"reference_decay": 0.9, "score_norm": True, "kl_target": 1.0, "kl_horizon": 50, "ptx_coef": 0.1},
    {"tuning": "freeze", "trainable_layers": 1, "value_model": "head", "reference_decay": 0.9},
]


@pytest.mark.parametrize("form", [RESUMED[0], *slow(*RESUMED[1:])], ids=str)
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(world, tmp_path, monkeypatch, form) -> None:
    config = options(**form, total_episodes=32, checkpoint_every=2, evaluate_every=1)
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


def stop_after_two(iteration: int, metrics: dict[str, float], run: Run) -> bool:
    """The callback of the tests."""
    SEEN.append((iteration, metrics["score"], run.config.batch_size))
    return iteration == 2


def stop_after_one(iteration: int, metrics: dict[str, float], run: Run) -> bool:
    return iteration == 1


STOP_AFTER_ONE = f"{__name__}:stop_after_one"
SEEN: list[tuple[int, float, int]] = []
STOP_AFTER_TWO = f"{__name__}:stop_after_two"


def test_a_callback_sees_every_iteration_and_can_end_the_run(world, tmp_path) -> None:
    SEEN.clear()
    trained(world, tmp_path, options(total_episodes=64, callbacks=[STOP_AFTER_TWO]))
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [0, 1, 2]
    assert [(record["step"], record["score"], 8) for record in records[1:]] == SEEN
    assert "eval_score" in records[-1]
    assert (tmp_path / "checkpoints" / "step-2").is_dir()


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_is_the_result_on_demand(world, tmp_path, monkeypatch) -> None:
    scores = iter([0.0, 1.0, 3.0, 2.0, 1.0, 0.5])
    monkeypatch.setattr(training, "evaluate_policy", lambda *_: EVALUATION | {"eval_score": next(scores)})
    config = options(total_episodes=40, evaluate_every=1, checkpoint_every=1, keep_checkpoints=1, use_best=True)
    training.main(config, {name: world[name] for name in ("data", "policy")}, tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-2", "step-5"}
    assert json.loads((tmp_path / "report.json").read_text())["best_iteration"] == 2
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["score_before"], report["score_after"]) == (0.0, 3.0)  # of the saved policy, not of the last
    saved = load_actor_critic(tmp_path).policy
    best, last = (read_tensors(tmp_path / "checkpoints" / name) for name in ("step-2", "step-5"))
    for name, tensor in saved.items():
        parameter = "parameter.policy." + name.replace(".weight", ".policy.weight")
        assert torch.equal(tensor, best[parameter])
    assert any(not torch.equal(best[name], last[name]) for name in best if name.startswith("parameter.policy"))


EVALUATION = {"eval_kl": 0.1, "eval_response_length": 5.0, "eval_ended": 0.5}


@pytest.mark.slow
def test_the_start_is_the_result_where_nothing_was_better(world, tmp_path, monkeypatch) -> None:
    scores = iter([5.0, 1.0, 3.0])
    monkeypatch.setattr(training, "evaluate_policy", lambda *_: EVALUATION | {"eval_score": next(scores)})
    config = options(evaluate_every=1, keep_checkpoints=1, use_best=True)
    training.main(config, {name: world[name] for name in ("data", "policy")}, tmp_path)
    saved = load_actor_critic(tmp_path)
    assert saved.details["iterations"] == 0
    assert not any(tensor.any() for name, tensor in saved.policy.items() if "lora_B" in name)


def test_a_run_that_a_callback_ended_is_over_when_it_is_resumed(world, tmp_path) -> None:
    config = options(total_episodes=64, callbacks=[STOP_AFTER_TWO])
    trained(world, tmp_path, config)
    SEEN.clear()
    trained(world, tmp_path, config)
    assert SEEN == []
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 2]


def test_the_smallest_value_is_the_best_where_a_minus_says_so(world, tmp_path, monkeypatch) -> None:
    values = iter([0.3, 0.2, 0.1, 0.4])
    monkeypatch.setattr(training, "evaluate_policy", lambda *_: EVALUATION | {"eval_score": 0, "eval_kl": next(values)})
    config = options(total_episodes=24, evaluate_every=1, keep_checkpoints=1, best_metric="-eval_kl")
    trained(world, tmp_path, config)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-2", "step-3"}


def test_metrics_reach_a_tracker(world, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(world, tmp_path, options(trackers=["tensorboard"]))
    folder = next((tmp_path / "trackers").rglob("events.*")).parent
    events = EventAccumulator(str(folder)).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("score")]
    records = read_metrics(tmp_path)[1:]
    assert logged == [(record["step"], pytest.approx(record["score"])) for record in records]


def test_while_the_value_model_is_pretrained_the_policy_stays(world, tmp_path) -> None:
    config = options(total_episodes=16, value_pretraining_iterations=1)
    ended = trained(world, tmp_path, config)
    records = read_metrics(tmp_path)
    assert "policy_loss" not in records[1]
    assert records[2]["kl"] == pytest.approx(0.0, abs=1e-5)  # sampled by a policy that has not moved yet
    assert "policy_loss" in records[2]
    pretrained = trained(world, tmp_path / "stopped", config.model_copy(update={"callbacks": [STOP_AFTER_ONE]}))
    assert not any(tensor.any() for name, tensor in pretrained.items() if name.startswith(POLICY) and "lora_B" in name)
    assert any(tensor.any() for name, tensor in pretrained.items() if name.startswith(VALUE) and "lora_B" in name)
    assert differ(pretrained, ended, POLICY)


def test_the_updates_of_an_iteration_end_at_target_kl(world, tmp_path) -> None:
    trained(world, tmp_path / "free", options(total_episodes=8))
    trained(world, tmp_path / "held", options(total_episodes=8, target_kl=1e-9))
    assert read_metrics(tmp_path / "free")[1]["updates"] == 1.0
    # The first of 4 steps starts at KL 0; before the second the policy has moved.
    assert read_metrics(tmp_path / "held")[1]["updates"] == 0.25


@pytest.mark.slow
def test_the_value_model_starts_where_it_is_told(world, tmp_path) -> None:
    first = trained(world, tmp_path / "a", options(rewards=[{"type": "model"}]), "reward_adapter_as_reward_model")
    other = options(rewards=[{"type": "model"}], value_init="base")
    second = trained(world, tmp_path / "b", other, "reward_adapter_as_reward_model")
    assert differ(first, second, VALUE)


def test_prompt_proportions_choose_the_data_sets(world, tmp_path, monkeypatch) -> None:
    sources: list[str] = []
    take = training.batch_of
    monkeypatch.setattr(training, "batch_of", lambda *a: sources.extend(p.source for p in take(*a)) or take(*a))
    trained(world, tmp_path, options(prompt_proportions={"even": 3, "odd": 1}))
    assert (sources.count("even"), sources.count("odd")) == (12, 4)


def test_a_run_of_other_processes_goes_on_and_says_that_bits_will_differ(world, tmp_path, capsys) -> None:
    config = options(total_episodes=24, checkpoint_every=1, callbacks=[STOP_AFTER_TWO])
    trained(world, tmp_path, config)
    state = tmp_path / "checkpoints" / "step-2" / "state.json"
    content = json.loads(state.read_text())
    content["progress"] |= {"num_processes": 2, "is_over": False}
    state.write_text(json.dumps(content))
    trained(world, tmp_path, config)
    assert "it was written by 2 processes: rounding will differ" in capsys.readouterr().out
    tensors = read_tensors(tmp_path / "checkpoints" / "step-3")
    steps = {tensor.item() for name, tensor in tensors.items() if name.startswith("step.")}
    assert steps == {12}  # 3 iterations of 4 optimizer steps: the first two are counted


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
        trained(world, tmp_path, options(tuning="full", learning_rate=1e30, value_learning_rate=1e30))


def test_a_score_that_is_not_finite_stops_the_run(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.tasks.ppo.tiny.count_favourite", lambda prompts, **_: [float("nan")] * len(prompts))
    with pytest.raises(InputError, match=r"rewards\.count_favourite gave the score nan for prompt 0"):
        trained(world, tmp_path, options())


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_output_is_an_actor_critic_with_a_report(world, tmp_path, tuning) -> None:
    inputs = {name: world[name] for name in ("data", "policy", "reward_model")}
    training.main(options(tuning=tuning, rewards=[{"type": "model"}]), inputs, tmp_path)
    assert kind_of(tmp_path) == "actor_critic"
    assert (tmp_path / "curves.png").stat().st_size > 1000
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_episodes"] == 16
    assert report["num_steps"] == 8
    assert set(report["seconds"]) == {"evaluate", "rollout", "score", "measure", "update"}
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
@pytest.mark.parametrize("trainable_layers", [None, 1])  # with 1 the states of the lower layer are gathered too
def test_two_processes_give_the_result_of_one(world, tmp_path, trainable_layers) -> None:
    changes = {"learning_rate": 1e-3, "value_learning_rate": 1e-3, "num_eval_prompts": 5}
    changes |= {"trainable_layers": trainable_layers}
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
@pytest.mark.parametrize(("tuning", "learning_rate"), [("lora", 1e-2), ("full", 2e-3)])
def test_it_learns_to_say_the_favourite_word(world, tmp_path, tuning, learning_rate) -> None:
    changes = {"total_episodes": 960, "batch_size": 32, "num_ppo_epochs": 4, "kl_coef": 0.02}
    rates = {"learning_rate": learning_rate, "value_learning_rate": learning_rate, "num_eval_prompts": 12}
    trained(world, tmp_path, options(tuning=tuning, sampling={"response_length": 10}, **changes, **rates))
    records = read_metrics(tmp_path)
    assert records[0]["eval_score"] < 1.0
    assert records[-1]["eval_score"] > 3.0


@pytest.mark.gpu
@pytest.mark.parametrize("form", [*RESUMED, {"dtype": "bfloat16"}, {"tuning": "qlora"}], ids=str)
def test_the_same_seed_gives_the_same_bits_on_a_gpu(world, tmp_path, form) -> None:
    first, second = (trained(world, tmp_path / name, options(**form)) for name in ("a", "b"))
    assert not differ(first, second, POLICY)
    assert not differ(first, second, VALUE)

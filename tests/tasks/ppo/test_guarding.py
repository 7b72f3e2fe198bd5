"""The guard in whole runs of PPO: what it catches, what it goes back to, and that a resume changes nothing of it."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.actor_critic.folder import load_actor_critic
from tasks.checkpoints import read_state, read_tensors
from tasks.errors import InputError
from tasks.ppo import train as training
from tasks.ppo.config import PPOConfig
from tasks.tracking import read_metrics
from tests.tasks.ppo.test_train import FAVOURITE, differ, launch, options, trained

pytestmark = pytest.mark.slow

DIFFERENT = "tests.tasks.ppo.tiny:count_different"
GUARD: dict[str, Any] = {"window": 1, "max_kl": None, "max_kl_jump": None}
Iterate = Callable[..., tuple[dict[str, float], Any]]


def guarded(guard: Mapping[str, Any] | None = None, **changes: Any) -> PPOConfig:
    """A run of 8 iterations, with a checkpoint after every second one."""
    plan = {"total_episodes": 64, "checkpoint_every": 2, "lr_schedule": "constant", "warmup_ratio": 0.0}
    return options(**plan | {"guard": GUARD | (guard or {})} | changes)


@pytest.fixture
def break_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets iterations give a score that is not a number, and one be interrupted: killed, or told to end."""
    iterate = training.iterate

    def arrange(broken: Collection[int], interrupted: int | None = None, how: str = "told to end") -> None:
        def broken_iterate(*arguments: Any) -> Any:
            metrics, progress = iterate(*arguments)
            if progress.iteration in broken:
                metrics["score"] = math.nan
            if progress.iteration == interrupted and how == "killed":
                raise KeyboardInterrupt
            if progress.iteration == interrupted:
                os.kill(os.getpid(), signal.SIGTERM)
            return metrics, progress

        monkeypatch.setattr(training, "iterate", broken_iterate)

    return arrange


def slow(*values: tuple[int, str]) -> list[Any]:
    """Parameters for the slow part."""
    return [pytest.param(*value, marks=pytest.mark.slow) for value in values]


def rewinds_of(output: Path) -> list[tuple[int, int]]:
    """When the run went back, and to where, as metrics.jsonl has it."""
    records = read_metrics(output)
    return [(int(record["step"]), int(record["rewound_to"])) for record in records if "rewound_to" in record]


def timeless(output: Path) -> list[dict[str, float]]:
    """The metrics without what the clock gave."""
    return [
        {name: value for name, value in record.items() if not name.endswith(("_s", "time"))}
        for record in read_metrics(output)
    ]


def leave_what_a_copy_has(output: Path) -> None:
    """Remove the checkpoints that another machine does not get: all but the newest and what it says that it needs."""
    folders = {int(path.name.rpartition("-")[2]): path for path in (output / "checkpoints").iterdir()}
    newest = max(folders)
    for step in folders.keys() - {newest, *read_state(folders[newest])["needs"]}:
        shutil.rmtree(folders[step])


def parameters_at(output: Path, iteration: int) -> dict[str, Tensor]:
    tensors = read_tensors(output / "checkpoints" / f"step-{iteration}")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("parameter.")}


def test_a_guard_without_an_alarm_changes_no_bit(world, tmp_path) -> None:
    plain = trained(world, tmp_path / "plain", options())
    watched = trained(world, tmp_path / "guarded", options(guard={}))
    assert not differ(plain, watched, "")
    assert {"distinct_2", "repeated_share", "phrase_share"} <= read_metrics(tmp_path / "guarded")[1].keys()


def test_a_metric_that_is_not_finite_leads_back_and_on_with_smaller_steps(world, tmp_path, break_after, capsys) -> None:
    break_after([5])
    guard = {"learning_rate_factor": 0.25, "kl_coef_factor": 3.0}
    trained(world, tmp_path, guarded(guard, keep_checkpoints=9, evaluate_every=1))
    assert rewinds_of(tmp_path) == [(5, 2)]  # 4 is within the window
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(9))
    assert [record["learning_rate"] for record in records[1:]] == pytest.approx([1e-2] * 5 + [2.5e-3] * 3)
    assert [record["value_learning_rate"] for record in records[1:]] == pytest.approx([1e-2] * 5 + [2.5e-3] * 3)
    assert [record["kl_coef"] for record in records[1:]] == pytest.approx([0.5] * 5 + [1.5] * 3)
    assert records[5]["eval_score"] == records[2]["eval_score"]
    assert "score" not in records[5]  # only what is a number is told
    assert "iteration 5: the guard's alarm: score is nan. Back to the weights of iteration 2" in capsys.readouterr().out


def test_weights_and_moments_are_those_of_the_good_checkpoint_and_what_is_drawn_is_new(
    world, tmp_path, break_after
) -> None:
    break_after([5])
    trained(world, tmp_path, guarded({"learning_rate_factor": 1.0, "kl_coef_factor": 1.0}, keep_checkpoints=9))
    good, after = (read_tensors(tmp_path / "checkpoints" / f"step-{iteration}") for iteration in (2, 5))
    assert good.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in good.items())
    records = read_metrics(tmp_path)
    assert records[6]["entropy"] != records[3]["entropy"]  # of the same policy, on other prompts with other numbers


def test_back_at_the_start_the_moments_of_adam_are_gone(world, tmp_path, break_after) -> None:
    break_after([1])
    trained(world, tmp_path, guarded(total_episodes=16, keep_checkpoints=9))
    assert rewinds_of(tmp_path) == [(1, 0)]
    assert not [name for name in read_tensors(tmp_path / "checkpoints" / "step-1") if name.startswith("exp_avg")]


def test_each_time_back_the_factors_count_once_more(world, tmp_path, break_after) -> None:
    break_after([3, 6])
    trained(world, tmp_path, guarded())
    assert rewinds_of(tmp_path) == [(3, 0), (6, 4)]  # 4 is 0's weights, then one iteration of the lower rate
    records = read_metrics(tmp_path)
    assert [record["learning_rate"] for record in records[1:]] == pytest.approx([1e-2] * 3 + [5e-3] * 3 + [2.5e-3] * 2)
    assert [record["kl_coef"] for record in records[1:]] == pytest.approx([0.5] * 3 + [1.0] * 3 + [2.0] * 2)


def test_going_back_twice_to_one_checkpoint_counts_twice(world, tmp_path, break_after) -> None:
    break_after([3, 4])
    trained(world, tmp_path, guarded())
    assert rewinds_of(tmp_path) == [(3, 0), (4, 0)]
    assert read_metrics(tmp_path)[5]["kl_coef"] == pytest.approx(2.0)
    assert read_metrics(tmp_path)[5]["learning_rate"] == pytest.approx(2.5e-3)


def test_the_adaptive_controller_goes_on_from_the_raised_coefficient(world, tmp_path, break_after) -> None:
    break_after([3])
    trained(world, tmp_path, guarded(total_episodes=48, kl_target=1000.0, kl_horizon=80))
    coefficients = [record["kl_coef"] for record in read_metrics(tmp_path)[1:]]
    falling = 1 - 0.2 * 8 / 80  # the KL is far below the target: the most that an iteration may change
    assert coefficients[3:] == pytest.approx([2 * 0.5 * falling**turn for turn in range(3)])


def test_after_the_last_allowed_time_the_run_ends_with_the_best_from_before(
    world, tmp_path, break_after, monkeypatch
) -> None:
    scores = {0: 0.0, 1: 1.0, 2: 5.0, 3: 2.0, 4: 3.0, 5: 9.0}
    evaluate = training.evaluate_policy
    monkeypatch.setattr(
        training, "evaluate_policy", lambda *given: evaluate(*given) | {"eval_score": scores.get(given[2], 4.0)}
    )
    break_after([6, 7])
    config = guarded({"max_rewinds": 1}, evaluate_every=1, checkpoint_every=1, keep_checkpoints=1)
    training.main(config, {name: world[name] for name in ("data", "policy")}, tmp_path)
    assert rewinds_of(tmp_path) == [(6, 4), (7, 4)]
    assert [record["step"] for record in read_metrics(tmp_path)][-1] == 7  # of 8
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["num_rewinds"], report["stopped_by_guard"], report["best_iteration"]) == (2, True, 2)  # 5 is no more
    assert [alarm["name"] for rewind in report["rewinds"] for alarm in rewind["alarms"]] == ["score", "score"]
    assert (tmp_path / "report.md").read_text().startswith("**The guard stopped this run**")
    saved, best = load_actor_critic(tmp_path), parameters_at(tmp_path, 2)
    assert saved.details["iterations"] == 2
    for name, tensor in saved.policy.items():
        assert torch.equal(tensor, best["parameter.policy." + name.replace(".weight", ".policy.weight")])


def test_without_a_good_checkpoint_after_the_start_the_run_ends_in_an_error(world, tmp_path, break_after) -> None:
    break_after(range(9))
    message = r"Iteration 3: .*score is nan. It has gone back 2 times .* no checkpoint after the start is good. Lower"
    with pytest.raises(InputError, match=message):
        trained(world, tmp_path, guarded({"max_rewinds": 2}))
    assert rewinds_of(tmp_path) == [(1, 0), (2, 0)]


def test_a_good_checkpoint_that_is_missing_is_named(world, tmp_path, break_after) -> None:
    break_after([], interrupted=3)
    with pytest.raises(SystemExit):
        trained(world, tmp_path, guarded())
    (tmp_path / "checkpoints" / "step-2").rename(tmp_path / "lost")
    break_after([5])
    with pytest.raises(InputError, match=r"It cannot go back: .*/checkpoints/step-2 is missing"):
        trained(world, tmp_path, guarded())


def test_what_the_guard_may_want_is_kept(world, tmp_path) -> None:
    trained(world, tmp_path, guarded({"window": 3}, checkpoint_every=1, keep_checkpoints=1))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-0", *(f"step-{number}" for number in (4, 5, 6, 7, 8))}  # step-0 is the best but for the last
    assert read_state(tmp_path / "checkpoints" / "step-8")["needs"] == [0, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("interrupted", "how"),
    [
        (6, "killed"),
        *slow((3, "told to end"), (4, "told to end"), (5, "killed"), (5, "told to end"), (7, "killed")),
    ],
)
def test_a_resume_changes_no_bit_of_what_the_guard_does(world, tmp_path, break_after, interrupted, how) -> None:
    config = guarded(evaluate_every=3, reference_decay=0.9, score_norm=True, kl_target=1.0, kl_horizon=50)
    broken = (5, 7)
    break_after(broken)
    undisturbed = trained(world, tmp_path / "a", config)
    assert rewinds_of(tmp_path / "a") == [(5, 2), (7, 5)]
    break_after(broken, interrupted, how)
    with pytest.raises(KeyboardInterrupt if how == "killed" else SystemExit):
        trained(world, tmp_path / "b", config)
    leave_what_a_copy_has(tmp_path / "b")
    break_after(broken)
    resumed = trained(world, tmp_path / "b", config)
    assert not differ(undisturbed, resumed, "")
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")
    histories = [read_state(tmp_path / name / "checkpoints" / "step-8")["progress"]["history"] for name in ("a", "b")]
    assert histories[0] == histories[1]


def test_a_score_that_is_not_finite_is_an_alarm_and_without_a_guard_the_end(world, tmp_path, monkeypatch) -> None:
    calls = []

    def once_not_a_number(prompts: list[str], **_: Any) -> list[float]:
        calls.append(1)
        return [math.nan if len(calls) == 4 else 1.0] * len(prompts)  # call 1 is the evaluation of the start

    monkeypatch.setattr("tests.tasks.ppo.tiny.count_favourite", once_not_a_number)
    trained(world, tmp_path / "guarded", guarded(total_episodes=40))
    assert rewinds_of(tmp_path / "guarded") == [(3, 0)]
    calls.clear()
    with pytest.raises(InputError, match="gave the score nan"):
        trained(world, tmp_path / "plain", options(total_episodes=40))


def test_an_evaluation_that_is_not_finite_ends_a_guarded_run_too(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.tasks.ppo.tiny.count_favourite", lambda prompts, **_: [math.nan] * len(prompts))
    with pytest.raises(InputError, match=r"rewards\.count_favourite gave the score nan for prompt 0"):
        trained(world, tmp_path, guarded())


ABSURD = {"tuning": "full", "learning_rate": 3.0, "num_mini_batches": 1, "total_episodes": 48}


def test_a_policy_that_an_absurd_learning_rate_blew_up_goes_back_to_a_lower_one(world, tmp_path) -> None:
    limit = 10.0  # nats: these responses of 6 tokens can hardly be 20 from a reference that knows 24 words
    trained(world, tmp_path / "unguarded", options(**ABSURD))
    assert read_metrics(tmp_path / "unguarded")[-1]["kl"] > limit
    guard = GUARD | {"max_kl": limit, "learning_rate_factor": 0.001}
    trained(world, tmp_path / "guarded", options(**ABSURD, guard=guard))
    assert rewinds_of(tmp_path / "guarded") == [(2, 0)]
    assert all(record["kl"] < limit for record in read_metrics(tmp_path / "guarded")[3:])


def test_weights_that_overflow_are_noticed_before_they_answer(world, tmp_path) -> None:
    config = options(**ABSURD | {"learning_rate": 1e30}, guard=GUARD | {"max_rewinds": 1})
    with pytest.raises(InputError, match=r"Iteration 2: .*parameter_norm is (inf|nan)"):
        trained(world, tmp_path, config)


def test_a_reward_that_invites_hacking_is_caught_by_the_second_signal(world, tmp_path) -> None:
    hackable, wanted = ({"type": "function", "function": name} for name in (FAVOURITE, DIFFERENT))
    changes = {
        "rewards": [hackable, wanted | {"weight": 0}],
        "total_episodes": 480, "batch_size": 16, "num_mini_batches": 1, "num_ppo_epochs": 4, "kl_coef": 0.02,
        "sampling": {"response_length": 10}, "num_eval_prompts": 12, "evaluate_every": 3, "checkpoint_every": 3,
    }  # fmt: skip
    reports = []
    for name, guard in (("unguarded", None), ("guarded", {"window": 3, "max_rewinds": 1})):
        (tmp_path / name).mkdir()
        training.main(options(**changes, guard=guard), {k: world[k] for k in ("data", "policy")}, tmp_path / name)
        evaluations = {record["step"]: record for record in read_metrics(tmp_path / name) if "eval_score" in record}
        result = load_actor_critic(tmp_path / name).details["iterations"]
        reports.append((evaluations[0], evaluations[result]))
    (start, unguarded), (_, kept) = (reports[0], reports[1])
    signal_ = "eval_score_count_different"
    assert unguarded["eval_score"] > start["eval_score"] + 3
    assert unguarded[signal_] < start[signal_] - 3
    assert kept[signal_] > start[signal_] - 1.25  # half of its spread at the start, which is 2.5
    assert kept["eval_score"] > start["eval_score"] + 1  # what can be had without losing it


def test_the_chains_second_reward_model_is_a_second_signal_and_changes_no_bit(world, tmp_path) -> None:
    rewards = [{"type": "model"}, {"type": "model", "model": "second_reward_model", "weight": 0}]
    alone = trained(world, tmp_path / "alone", options(rewards=rewards[:1], guard={}), "reward_model")
    inputs = ("reward_model", "reward_adapter_as_second_reward_model")
    both = trained(world, tmp_path / "both", options(rewards=rewards, guard={}), *inputs)
    assert not differ(alone, both, "")
    record = read_metrics(tmp_path / "both")[1]
    assert record["score_second_reward_model_std"] > 0
    assert record["score_second_reward_model"] != record["score"] == record["score_model"]


def test_two_processes_go_back_together_when_one_of_them_has_a_score_that_is_not_finite(world, tmp_path) -> None:
    broken = {"type": "function", "function": "tests.tasks.ppo.tiny:not_a_number_in_one_process"}
    guard = GUARD | {"max_rewinds": 2}
    launch(world, tmp_path / "two", 2, rewards=[broken], total_episodes=40, checkpoint_every=1, guard=guard)
    assert rewinds_of(tmp_path / "two") == [(4, 2)]
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert (report["num_processes"], report["num_rewinds"], report["num_iterations"]) == (2, 1, 5)

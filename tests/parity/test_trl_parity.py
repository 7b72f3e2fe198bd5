"""Our functions on a rollout of TRL 1.12.0's PPOTrainer, with its weights: equal to what it computed, to 1e-5.

make_trl_fixture.py recorded its variables while it ran. Where the two differ: test_trl_differences.py.
"""

from pathlib import Path

import pytest
from torch.testing import assert_close

from tasks.ppo.objective import Moments
from tasks.ppo.targets import targets_of
from tasks.ppo.train import make_optimizer
from tasks.ppo.update import update
from tests.parity.compare import EVERY_RUN, FULL_RUNS, Pairs, measured, steps, targets
from tests.parity.iteration import rolled_out
from tests.parity.recorded import CLOSE, parameters, recorded

LOGGED = {  # our metric: theirs, where both mean the same when no response is padded
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "clip_fraction": "policy/clipfrac_avg",
    "value_clip_fraction": "val/clipfrac_avg",
    "ratio": "val/ratio",
}


def assert_all_close(pairs: Pairs) -> None:
    for name, (ours, theirs) in pairs.items():
        assert_close(ours, theirs, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        assert theirs.any(), name


def test_the_fixture_has_prompts_and_endings_of_several_sorts() -> None:
    full, early = recorded("full"), recorded("early")
    assert len({len(prompt) for prompt in full.prompts}) > 3
    assert full.mask.all()
    assert 0 < full.ended.sum() < 8
    assert len(set(early["sequence_lengths"].tolist())) > 3
    assert 0 < early.ended.sum() < 8


@pytest.mark.parametrize("name", EVERY_RUN)
def test_logprobs_values_and_scores_are_trls(name: str) -> None:
    assert_all_close(measured(recorded(name)))


@pytest.mark.parametrize("name", FULL_RUNS)
def test_kl_rewards_advantages_and_returns_are_trls(name: str) -> None:
    assert_all_close(targets(recorded(name)))


@pytest.mark.parametrize(("name", "num_steps"), [("full", 2), ("full_k3_whitened", 1)])
def test_losses_and_gradients_of_each_step_are_trls(name: str, num_steps: int) -> None:
    compared = list(steps(recorded(name)))
    assert len(compared) == num_steps
    for pairs in compared:
        assert_all_close(pairs)
        for part in ("policy", "value"):
            ours, theirs = pairs[f"{part} gradient"]
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("name", FULL_RUNS)
def test_our_rollout_of_trls_responses_leads_to_trls_targets(name: str, tmp_path: Path) -> None:
    run = recorded(name)
    ours, rollout = rolled_out(run, tmp_path)
    aims = targets_of(rollout, ours.config, ours.config.kl_coef, Moments())
    pairs = {
        "logprobs": (rollout.old_logprobs, run["logprobs"]),
        "ref_logprobs": (rollout.ref_logprobs, run["ref_logprobs"]),
        "values": (rollout.values, run["values"]),
        "advantages": (aims.advantages, run["micro_batch_0.whitened_advantages"]),
        "returns": (aims.returns, run["returns"]),
    }
    assert_all_close(pairs)


def test_an_iteration_of_ours_on_trls_responses_ends_at_trls_weights(tmp_path: Path) -> None:
    run = recorded("full")
    ours, rollout = rolled_out(run, tmp_path)
    aims = targets_of(rollout, ours.config, ours.config.kl_coef, Moments())
    metrics = update(ours, make_optimizer(ours), rollout, aims, 0)
    for name, theirs in LOGGED.items():
        assert_close(metrics[name].item(), run.logged[theirs], **CLOSE)
    assert metrics["clip_fraction"] > 0.1
    assert metrics["value_clip_fraction"] > 0.1
    for part, model in (("policy", ours.models.language_model), ("value", ours.models.value_model)):
        assert_close({name: weight.detach() for name, weight in parameters(model).items()}, run.trained(part), **CLOSE)

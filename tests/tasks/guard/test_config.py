import pytest

from tasks.guard.config import GuardConfig
from tasks.ppo.config import PPOConfig

MODEL = {"type": "model"}
RULE = {"type": "function", "function": "a.b:rule", "weight": 0}
OTHER = {"type": "function", "function": "a.b:other", "weight": 0.5}


def signals(*rewards: dict[str, object], **options: object) -> list[str]:
    config = PPOConfig(rewards=list(rewards), guard=options)
    assert config.guard is not None
    return config.guard.second_signals(config.rewards)


def test_rewards_of_weight_0_are_the_second_signals() -> None:
    assert signals(MODEL, RULE, OTHER) == ["rule"]
    assert signals(MODEL) == []


def test_another_reward_can_be_named() -> None:
    assert signals(MODEL, RULE, OTHER, second_signal="other") == ["other"]


def test_a_second_signal_that_is_no_reward_is_refused_naming_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"second_signal 'rul' is none of the rewards model, rule\. Add it"):
        signals(MODEL, RULE, second_signal="rul")


def test_the_score_is_not_held_against_itself() -> None:
    with pytest.raises(ValueError, match="'model' is all that the score is made of"):
        signals(MODEL, RULE, second_signal="model")


def test_there_is_no_guard_unless_one_is_asked_for() -> None:
    assert PPOConfig().guard is None


@pytest.mark.parametrize("options", [{"window": 0}, {"learning_rate_factor": 1.1}, {"kl_coef_factor": 0.9}, {"x": 1}])
def test_what_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        GuardConfig(**options)

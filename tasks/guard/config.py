"""The options of the guard that watches PPO; docs/ppo.md says what is healthy. None = not watched, everywhere."""

from collections.abc import Sequence

from pydantic import Field

from tasks.config import Config
from tasks.rewards.config import RewardConfig


class GuardConfig(Config):
    """What sends PPO back to its last good checkpoint, with smaller steps. A metric that is not finite always does.

    What is called a mean is one over the last `window` iterations; the start is the first iteration, whose responses
    are of the policy before any update.
    """

    window: int = Field(5, ge=1)
    """Iterations that are averaged, and whose checkpoints are not trusted once an alarm came: longer is surer and
    loses more."""

    # The distance from the reference
    max_kl: float | None = Field(200.0, gt=0)
    """KL of a response, in nats, mean of one iteration. Responses of thousands of tokens that nothing holds near the
    reference may healthily go further."""
    max_kl_jump: float | None = Field(5.0, gt=1)
    """Times the median KL of the `window` iterations before: the policy blew up from one update to the next."""
    kl_jump_from: float = Field(10.0, gt=0)
    """A median below this many nats counts as this many: near 0 any KL is many times the one before."""

    # The responses
    min_entropy: float | None = Field(0.01, ge=0)
    """Mean entropy in nats per token: below it the policy knows one answer."""
    max_entropy_ratio: float | None = Field(5.0, gt=1)
    """Mean entropy, times the start's: above it the policy draws noise."""
    max_length_ratio: float | None = Field(4.0, gt=1)
    """Mean tokens of a response, times the start's. Reasoning towards a rule may healthily grow further: set None."""
    min_length_ratio: float | None = Field(0.2, gt=0, lt=1)
    """The same downwards."""
    min_distinct_2_ratio: float | None = Field(0.1, gt=0, lt=1)
    """Mean of the different pairs of neighbouring tokens / all pairs of a rollout, times the start's: below it the
    responses are one response."""
    max_repeated_share: float | None = Field(0.6, gt=0, lt=1)
    """Mean share of a response that its longest repeated span takes: above it the policy loops."""
    max_phrase_share: float | None = Field(None, gt=0, le=1)
    """Mean share of responses with the commonest phrase of 4 tokens. A format that is asked for is such a phrase."""
    max_ended_drop: float | None = Field(0.5, gt=0, le=1)
    """Mean share of responses that end by themselves, below the start's by this much."""

    # The scores and the values
    max_score_drop: float | None = Field(2.0, gt=0)
    """Mean score below the start's, in standard deviations of the start's scores."""
    second_signal: str | None = None
    """Name of the reward that the score is held against, such as a held-out reward model or a rule; give it the weight
    0 in `rewards`. None = every reward of weight 0."""
    max_second_drop: float | None = Field(0.5, gt=0)
    """Mean of the second signal below its highest so far, in standard deviations of the start's, while the score rose
    by min_score_rise: what the score asks for is no longer what is wanted."""
    min_score_rise: float = Field(0.5, ge=0)
    """By how much the mean score must have risen since then, in standard deviations of the start's scores."""
    min_explained_variance: float | None = None
    """Mean explained variance of the returns: far below 0 the values mislead. Early, and where all responses earn the
    same, it healthily is."""

    # What is done
    max_rewinds: int = Field(3, ge=0)
    """Times that a run goes back; at the next alarm it ends, with the best checkpoint as its result."""
    learning_rate_factor: float = Field(0.5, gt=0, le=1)
    """What each time back multiplies both learning rates by, along their schedules."""
    kl_coef_factor: float = Field(2.0, ge=1)
    """What each time back multiplies kl_coef by; with kl_target it is adapted from there."""

    def second_signals(self, rewards: Sequence[RewardConfig]) -> list[str]:
        """Names of the rewards that the score is held against."""
        if self.second_signal is not None:
            return [self.second_signal]
        return [reward.name for reward in rewards if reward.weight == 0]

    def check(self, rewards: Sequence[RewardConfig]) -> None:
        """Raise ValueError if there is no such second signal, or it is all of the score."""
        names = [reward.name for reward in rewards]
        if self.second_signal is None:
            return
        if self.second_signal not in names:
            raise ValueError(
                f"guard.second_signal {self.second_signal!r} is none of the rewards {', '.join(names)}. Add it to "
                "`rewards` with the weight 0, or name one that is there."
            )
        if not any(reward.weight for reward in rewards if reward.name != self.second_signal):
            raise ValueError(
                f"guard.second_signal {self.second_signal!r} is all that the score is made of. Name another reward, or "
                "give others a weight."
            )

"""The options of `certify`: what a reward model has to prove before PPO follows it."""

from typing import Literal, Self, get_args

from pydantic import Field

from tasks.config import Config, Device, SamplingConfig
from tasks.rules import Rule
from tasks.templates import ConversationTemplate

Threshold = Literal[
    "pair_accuracy",
    "pair_accuracy_low",
    "ece",
    "length_correlation",
    "length_bias",
    "length_matched_accuracy",
    "split_dispersion",
    "second_agreement",
    "score_spread",
    "score_shift",
    "tokenizer_match",
    "template_match",
]
BOTH_WAYS = ("length_correlation", "length_bias", "score_shift")
AT_MOST = ("ece", "split_dispersion")


class CertifyConfig(Config):
    """What is measured of a reward model, and how good it has to be. None switches a threshold off."""

    # The thresholds, each named for its figure
    pair_accuracy: float | None = Field(0.6, ge=0, le=1)
    """Least share of held-out pairs that are ordered right. People agree with each other on 63 % (Bai et al. 2022,
    arXiv:2204.05862) to 77 % (Ouyang et al. 2022, arXiv:2203.02155) of such pairs."""
    pair_accuracy_low: float | None = Field(0.5, ge=0, le=1)
    """Least lower end of that share's 95 % interval: above 0.5 it is no guessing. With few pairs it is what fails."""
    ece: float | None = Field(0.25, ge=0, le=1)
    """Largest expected calibration error. An overconfident reward model's scores lie too far apart: kl_coef then holds
    the policy less than it seems to."""
    length_correlation: float | None = Field(0.7, ge=0, le=1)
    """Largest rank correlation of score and response length, to either side."""
    length_bias: float | None = Field(0.2, ge=0, le=1)
    """Largest excess, to either side, of how often the reward model prefers the longer response over how often the data
    do: PPO turns it into length (Singhal et al. 2023, arXiv:2310.03716)."""
    length_matched_accuracy: float | None = Field(0.5, ge=0, le=1)
    """Least pair accuracy where both responses are equally long: what it knows beside length."""
    split_dispersion: float | None = Field(5.0, gt=0)
    """Largest variance of the pair accuracy between parts of the held-out pairs, as a multiple of chance's."""
    second_agreement: float | None = Field(0.6, ge=0, le=1)
    """Least share of held-out pairs on which the second reward model, if there is one, prefers the same response."""
    score_spread: float | None = Field(0.1, ge=0)
    """Least deviation of the scores of the SFT model's answers, as a share of that of the pairs' responses: below it
    all answers are alike to the reward model, and PPO has nothing to follow."""
    score_shift: float | None = Field(3.0, gt=0)
    """Largest distance of the mean score of the SFT model's answers from that of the pairs' responses, in deviations of
    these: beyond it the answers are of another kind than what the reward model learnt from."""
    tokenizer_match: float | None = Field(1.0, ge=0, le=1)
    """1 = the reward model has to read the policy's tokens. One that does not reads the texts in tokens of its own."""
    template_match: float | None = Field(1.0, ge=0, le=1)
    """Least share of held-out conversations that the reward model's chat template writes as the policy's does."""
    accept: list[Threshold] = Field(default_factory=list)
    """Thresholds that may fail: PPO starts all the same, and the certificate says what was let through."""

    # What is measured
    num_pairs: int = Field(2000, ge=1)
    """Held-out pairs, and at most as many of the training split, chosen by the seed."""
    num_demonstrations: int = Field(500, ge=0)
    """Held-out SFT records whose scores are shown beside the others."""
    num_prompts: int = Field(200, ge=2)
    """Held-out prompts that the SFT model answers, chosen by the seed."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How it answers: as PPO will."""
    conversation_template: ConversationTemplate | None = None
    """How a conversation is written: the one that PPO trains with. None = the tokenizer's chat template."""
    num_bins: int = Field(10, ge=2)
    """Bins of the confidence, 0.5 to 1, in the reliability table."""
    num_splits: int = Field(5, ge=2)
    """Parts of the held-out pairs, by a hash of the prompt, whose accuracies are compared."""
    matched_within: float = Field(0.1, ge=0, lt=1)
    """Responses are of like length if they differ by at most this share of the longer."""
    seed: int = Field(0, ge=0)
    """Of the choice of pairs, records and prompts, and of the sampling."""
    batch_size: int = Field(64, ge=1)
    """Prompts answered at once: memory, not results."""
    token_budget: int = Field(16384, ge=1)
    """Padded tokens per forward pass when scoring: memory, not results."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of all models' weights."""

    def rules(self) -> list[Rule]:
        """The thresholds that are switched on, each as a rule on the figure of its name."""
        bounds = {name: getattr(self, name) for name in get_args(Threshold)}
        return [_rule(name, bound) for name, bound in bounds.items() if bound is not None]

    def with_less_memory(self, device: Device) -> Self | None:
        """Half the prompts answered at once, and half the tokens of a forward pass."""
        if self.batch_size == 1 and self.token_budget == 1:
            return None
        changes = {"batch_size": max(1, self.batch_size // 2), "token_budget": max(1, self.token_budget // 2)}
        return self.model_copy(update=changes)


def _rule(name: str, bound: float) -> Rule:
    if name in BOTH_WAYS:
        return Rule(figure=name, least=-bound, most=bound)
    return Rule(figure=name, most=bound) if name in AT_MOST else Rule(figure=name, least=bound)

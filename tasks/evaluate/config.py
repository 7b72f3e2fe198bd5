"""The options of `evaluate`: SFT against PPO on held-out prompts."""

import keyword
from typing import Literal

from pydantic import Field, field_validator

from tasks.config import Config, SamplingConfig
from tasks.templates import ConversationTemplate

RESERVED_METRIC_NAMES = (
    "score",
    "kl",
    "response_length",
    "ended_share",
    "distinct_1",
    "distinct_2",
    "repetition",
    "commonest_phrase",
    "commonest_phrase_share",
)


class EvaluateConfig(Config):
    """What is compared, on how many prompts, and how sure the win rate is to be."""

    num_prompts: int = Field(200, ge=1)
    """Held-out prompts, chosen by the seed; all of them where there are fewer. The win rate's 95 % interval is about
    1 / sqrt(prompts) to either side."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How both models answer. KL belongs to the temperature given here; with top k or top p it compares the full
    distributions, not the cut ones."""
    conversation_template: ConversationTemplate | None = None
    """How a conversation is written, as fields or as the path of a JSON file: the one that PPO trained with. None = the
    tokenizer's chat template."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Further judges by name: `package.module:function`, called as function(prompts, responses, **columns) and giving
    one number per response, higher is better."""
    seed: int = 0
    """Of the choice of prompts, the sampling and the bootstrap."""
    num_bootstrap: int = Field(2000, ge=100)
    """Resamplings of the prompts for each 95 % interval; with 2000 its ends wander from seed to seed by about 1.5 %
    of its width."""
    batch_size: int = Field(64, ge=1)
    """Prompts answered at once by each model: memory, not results."""
    token_budget: int = Field(16384, ge=1)
    """Padded tokens per forward pass when scoring and measuring KL: memory, not results."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of all three models' weights. bfloat16 halves memory and blurs KL."""
    num_samples: int = Field(10, ge=3)
    """Prompts in report.md with both answers, chosen by the seed."""

    @field_validator("metrics")
    @classmethod
    def _metric_names_are_free(cls, metrics: dict[str, str]) -> dict[str, str]:
        for name, path in metrics.items():
            if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED_METRIC_NAMES:
                raise ValueError(
                    f"metric name {name!r} must be a word of letters, digits and _ "
                    f"and none of {', '.join(RESERVED_METRIC_NAMES)}"
                )
            if ":" not in path:
                raise ValueError(f"metric {name} is {path!r}; expected package.module:function")
        return metrics

"""The options of a source of scores. Nothing heavy is imported here."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from tasks.config import Config
from tasks.rewards.rules import FormatTags

RULES = {
    "gsm8k_reward_fn": "tasks.rewards.rules:gsm8k_reward_fn",
    "math_competition_reward_fn": "tasks.rewards.rules:math_competition_reward_fn",
}
OWN_MODEL = "reward_model"  # the program's input that holds the chain's own reward model
SECOND_MODEL = "second_reward_model"  # that of the chain's second one, and how it is named in a config
RESERVED_ARGUMENTS = ("prompts", "responses")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]
Weight = Annotated[float, Field(allow_inf_nan=False)]


def _require_service(url: str) -> str:
    """`url` itself if something can be posted to it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise ValueError(f"url {url!r}: expected http://host[:port]/path or https://host[:port]/path")
    if parts.username or parts.password:
        raise ValueError("url holds a user name or password, which would be kept; use auth_variable instead")
    parts.port  # noqa: B018 - raises ValueError for a port that is none
    return url


class ModelReward(Config):
    """A reward model: the chain's own, or another one."""

    type: Literal["model"] = "model"
    """What the source is."""
    model: str | None = Field(None, min_length=1)
    """Hub name, folder or artifact of a reward model, which may have a tokenizer and chat template of its own; a LoRA
    reward model must be of the policy's base. None = the chain's own reward model; second_reward_model = its second."""
    name: Name = Field(default_factory=lambda given: _model_name(given["model"]))
    """In metrics and files. Default: `model`, or the last part of another model's name."""
    weight: Weight = 1.0
    """In the sum of the sources; 0 = only reported."""

    @property
    def input_name(self) -> str:
        """The program's input that holds the model."""
        if self.model in (None, SECOND_MODEL):
            return self.model or OWN_MODEL
        return f"reward_{self.name}"

    @property
    def source(self) -> str | None:
        """Where the model is; None for the chain's own two."""
        return None if self.model == SECOND_MODEL else self.model

    @model_validator(mode="after")
    def _leaves_the_own_model_its_input(self) -> "ModelReward":
        if self.model is not None and self.input_name == OWN_MODEL:
            raise ValueError(
                f"the name {self.name!r} is kept for the chain's own reward model; give {self.model} another"
            )
        return self


class FunctionReward(Config):
    """A Python function."""

    type: Literal["function"] = "function"
    """What the source is."""
    function: str
    """`package.module:function`, importable where PPO runs, or a rule of ours: gsm8k_reward_fn or
    math_competition_reward_fn. It gets lists by name - prompts, responses, and the records' other columns - and gives a
    list of numbers, one per response."""
    name: Name = Field(default_factory=lambda given: given["function"].rpartition(":")[2].replace(".", "_"))
    """In metrics and files. Default: the function's own name."""
    weight: Weight = 1.0
    """In the sum of the sources; 0 = only reported."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments by name. The rules take response_format_tags, in ColossalChat's form."""

    @property
    def path(self) -> str:
        """`package.module:function`, of a rule too."""
        return RULES.get(self.function, self.function)

    @property
    def is_rule(self) -> bool:
        """Whether the function is a rule of ours."""
        return self.path in RULES.values()

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str) -> str:
        if function not in RULES and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", function):
            raise ValueError(f"function {function!r}: expected package.module:function, or one of {', '.join(RULES)}")
        return function

    @model_validator(mode="after")
    def _arguments_can_be_passed(self) -> "FunctionReward":
        if taken := [name for name in RESERVED_ARGUMENTS if name in self.arguments]:
            raise ValueError(f"arguments: {' and '.join(taken)} are given by PPO itself; choose another name")
        if self.is_rule and "response_format_tags" in self.arguments:
            FormatTags.model_validate(self.arguments["response_format_tags"])
        return self


class ServiceConfig(Config):
    """A service that is asked over HTTP."""

    url: Annotated[str, AfterValidator(_require_service)]
    """Where the requests are posted."""
    timeout_s: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Seconds that a connection, and each pause within an answer, may take."""
    max_retries: int = Field(6, ge=0)
    """Further tries after a connection error, a timeout, or status 429 or 5xx; their pauses double from 0.5 s up to
    30 s, so 6 bridge half a minute. A longer Retry-After is honoured. Any other status is refused at once."""
    num_parallel: int = Field(4, ge=1)
    """Requests under way at once, of each process."""
    auth_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable, where the stage runs, that holds the Authorization header (`Bearer ...`). None = no
    header."""
    replay: str | None = Field(None, min_length=1)
    """The log of a former run's requests, which answers instead of the service. None = the service is asked."""


class ApiReward(ServiceConfig):
    """A service that is asked over HTTP, as LLaMA-Factory or OpenRLHF ask it."""

    type: Literal["api"] = "api"
    """What the source is."""
    name: Name = "api"
    """In metrics and files."""
    weight: Weight = 1.0
    """In the sum of the sources; 0 = only reported."""
    protocol: Literal["llama_factory", "openrlhf"] = "llama_factory"
    """llama_factory: {"model", "messages"} -> {"scores"}; openrlhf: {"query", "prompts", "labels"} -> {"rewards"}."""
    label_column: str = "answer"
    """Column of the prompts' records that openrlhf's `labels` hold; "" is sent where a record has none."""
    batch_size: int = Field(32, ge=1)
    """Responses in one request."""
    replay: str | None = Field(None, min_length=1)
    """A former run's reward_NAME.jsonl, which answers instead of the service; those of its other processes are read
    from beside it. None = the service is asked."""


def _as_any_of(schema: dict[str, Any]) -> None:
    """Prefect's form shows alternatives that are called anyOf, and no others."""
    schema["anyOf"] = schema.pop("oneOf")


RewardConfig = Annotated[
    ModelReward | FunctionReward | ApiReward, Field(discriminator="type", json_schema_extra=_as_any_of)
]


def check_names(rewards: Sequence[ModelReward | FunctionReward | ApiReward]) -> None:
    """Raise ValueError if two sources have one name."""
    counts = Counter(reward.name for reward in rewards)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"two rewards are named {', '.join(repeated)}; set `name` so that each can be reported by itself"
        )


def _model_name(model: str | None) -> str:
    """`model`, or the last part of a hub name, folder or URI without its revision."""
    if model is None:
        return "model"
    last = Path(model).name.partition("@")[0]
    return re.sub(r"\W+", "_", last, flags=re.ASCII)


class ScoreConfig(Config):
    """What scores a response, and how the scores are shaped."""

    rewards: list[RewardConfig] = Field([ModelReward()], min_length=1)
    """What scores a response; the score is the weighted sum."""
    score_norm: bool = False
    """Shift and scale scores by the mean and deviation of all scores so far (as LLaMA-Factory's ppo_score_norm)."""
    score_clip: float | None = Field(None, gt=0)
    """Scores beyond +- this are cut to it, after score_norm."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Subtracted from the score of a response that did not end; after score_norm and score_clip."""
    missing_eos_score: float | None = None
    """Replaces the score of a response that did not end (Huang et al. 2024, arXiv:2403.17031: -1)."""

    @property
    def uses_reward_model(self) -> bool:
        """Whether the chain's own reward model is among the rewards."""
        return any(isinstance(reward, ModelReward) and reward.model is None for reward in self.rewards)

    @property
    def uses_second_reward_model(self) -> bool:
        """Whether the chain's second reward model is among the rewards."""
        return any(isinstance(reward, ModelReward) and reward.model == SECOND_MODEL for reward in self.rewards)

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        check_names(self.rewards)
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            raise ValueError("Both missing_eos_penalty (subtract) and missing_eos_score (replace) are set. Choose one.")
        return self

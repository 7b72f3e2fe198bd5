"""The options of `evaluate`: PPO and its forerunners on held-out prompts."""

import keyword
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from tasks.config import Config, SamplingConfig
from tasks.evaluate.names import PAIRS, RESERVED_JUDGES
from tasks.evaluate.prompt_files import read_prompt_file
from tasks.rewards.config import Name, ServiceConfig
from tasks.templates import ConversationTemplate, Text

INSTRUCTIONS = (
    "You compare two answers to the same prompt, as an impartial judge. Look at whether each does what the prompt "
    "asks, is correct, and is helpful; neither length nor the order in which the answers stand counts. Say in a few "
    "sentences what distinguishes them. Then end with your verdict: [[A]] if answer A is better, [[B]] if answer B is "
    "better, [[C]] for a tie."
)


class LlmJudge(ServiceConfig):
    """A language model behind an OpenAI-compatible API (`.../chat/completions`) that compares two answers.

    It sees each pair in both orders; the two verdicts count half each (Zheng et al. 2023, arXiv:2306.05685).
    """

    model: str = Field(min_length=1)
    """The `model` of the requests."""
    name: Name = "llm"
    """In figures and files."""
    instructions: str = Field(INSTRUCTIONS, min_length=1)
    """The system message. The reply has to hold [[A]], [[B]] or [[C]] for a tie; the last one counts."""
    options: dict[str, JsonValue] = Field({"temperature": 0, "max_tokens": 512})
    """Further fields of every request."""
    num_prompts: int = Field(100, ge=1)
    """At most so many of the prompts are asked about, the first ones; two requests each, for each rival."""
    max_unread_share: float = Field(0.1, ge=0, le=1)
    """Replies without a verdict count as ties; if more than this share are such, the evaluation is refused."""


class Harness(Config):
    """Tasks of EleutherAI's lm-evaluation-harness, of which every model does each; needs the extra `harness`."""

    tasks: list[str] = Field(min_length=1)
    """Their names. Data that is not on the machine is not fetched: the stage runs offline."""
    include_path: str | None = None
    """A folder with tasks of your own."""
    limit: int | None = Field(100, ge=1)
    """So many documents of each task, the first ones; None = all."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each; None = as the task says."""
    apply_chat_template: bool = False
    """Write the tasks as conversations."""
    batch_size: int = Field(8, ge=1)
    """Rows at once: memory, not results."""


class EvaluateConfig(Config):
    """What is compared, on how many prompts, and how sure the win rate is to be."""

    num_prompts: int = Field(200, ge=1)
    """Held-out prompts, chosen by the seed; all of them where there are fewer. The win rate's 95 % interval is about
    1 / sqrt(prompts) to either side."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How every model answers. KL belongs to the temperature given here; with top k or top p it compares the full
    distributions, not the cut ones."""
    greedy: bool = True
    """Every model also answers with its likeliest tokens; the figures are called greedy_..."""
    conversation_template: ConversationTemplate | None = None
    """How a conversation is written, as fields or as the path of a JSON file: the one that PPO trained with. None = the
    tokenizer's chat template."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Further judges by name: `package.module:function`, called as function(prompts, responses, **columns) and giving
    one number per response, higher is better."""
    llm_judge: LlmJudge | None = None
    """A language model that compares PPO's sampled answers with SFT's and with the champion's."""
    harness: Harness | None = None
    """Further tasks, for figures called harness_TASK_METRIC_... ."""
    canaries: list[Text] = Field(default_factory=list)
    """Prompts or conversations that SFT, champion and PPO always answer, greedily, to be read side by side; or the path
    of a file of them: a JSON list, JSON lines, or text with a prompt a line. They are kept, not the path."""
    num_sft_records: int = Field(500, ge=0)
    """Held-out SFT records, chosen by the seed, on which every model's perplexity is measured; 0 = it is not."""
    seed: int = 0
    """Of the choice of prompts and records, the sampling and the bootstrap."""
    num_bootstrap: int = Field(2000, ge=100)
    """Resamplings of the prompts for each 95 % interval; with 2000 its ends wander from seed to seed by about 1.5 %
    of its width."""
    batch_size: int = Field(64, ge=1)
    """Prompts answered at once by each model: memory, not results."""
    token_budget: int = Field(16384, ge=1)
    """Padded tokens per forward pass when scoring and measuring KL: memory, not results."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of all models' weights. bfloat16 halves memory and blurs KL."""
    num_samples: int = Field(10, ge=3)
    """Prompts in report.md with their answers, chosen by the seed."""
    num_timed: int = Field(3, ge=0)
    """Prompts that every model also answers one by one for the latency in speed.json; 0 = it is not measured."""

    @field_validator("metrics")
    @classmethod
    def _metric_names_are_free(cls, metrics: dict[str, str]) -> dict[str, str]:
        for name, path in metrics.items():
            if not name.isidentifier() or keyword.iskeyword(name) or not _is_free(name):
                raise ValueError(
                    f"metric name {name!r} must be a word of letters, digits and _, "
                    f"none of {', '.join(RESERVED_JUDGES)}, and not begin with {' or '.join(filter(None, PAIRS))}"
                )
            if ":" not in path:
                raise ValueError(f"metric {name} is {path!r}; expected package.module:function")
        return metrics

    @field_validator("canaries", mode="before")
    @classmethod
    def _read_canaries(cls, canaries: Any) -> Any:
        if not isinstance(canaries, str):
            return canaries
        return [record["prompt"] for record in read_prompt_file(Path(canaries).expanduser())]

    @model_validator(mode="after")
    def _llm_judge_has_a_name_of_its_own(self) -> "EvaluateConfig":
        if self.llm_judge is not None and (self.llm_judge.name in self.metrics or not _is_free(self.llm_judge.name)):
            raise ValueError(f"llm_judge.name {self.llm_judge.name!r} is taken; choose another")
        return self


def _is_free(name: str) -> bool:
    return name not in RESERVED_JUDGES and not name.startswith(tuple(filter(None, PAIRS)))

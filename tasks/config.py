"""What every stage's configuration is made of."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Device = Literal["cpu", "cuda"]
Tuning = Literal["full", "freeze", "lora", "qlora"]  # see tasks/models/tuning.py


class Config(BaseModel):
    """A frozen group of options that refuses unknown keys.

    A field's docstring is its description, and its title is the name that a user writes.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        field_title_generator=lambda name, _: name,
    )

    def with_less_memory(self, device: Device) -> Self | None:
        """The same mathematics in smaller micro-batches, after memory ran out on `device`; None = it cannot be less."""
        return None


class LoraConfig(Config):
    """Low-rank adapters on a frozen model (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(16, ge=1)
    """Rank of each update matrix."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of adapter inputs dropped in training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the modules that get an adapter, or 'all-linear' for every linear layer but the head."""
    use_rslora: bool = False
    """Scale the update by alpha / sqrt(r) instead (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732): at large ranks
    alpha / r leaves little of it."""
    use_dora: bool = False
    """Learn the length of each weight row apart from its direction (DoRA, Liu et al. 2024, arXiv:2402.09353): better at
    small ranks, but every forward forms the whole update matrix, which about doubles the time of generation."""


class ProofConfig(Config):
    """On what two models that must say the same are compared."""

    num_prompts: int = Field(16, ge=1)
    """Held-out prompts taken from the input `data` where it is given, and as many rows drawn from the vocabulary."""
    prompts: list[str] = Field(default_factory=list)
    """Texts compared on beside them."""
    seed: int = Field(0, ge=0)
    """Of the drawn rows."""


class SamplingConfig(Config):
    """How responses are drawn from a language model. EOS always ends one."""

    response_length: int = Field(64, ge=1)
    """Longest response, in tokens."""
    min_new_tokens: int = Field(0, ge=0)
    """The end of the response is not sampled among this many tokens, and no stop string is looked for in them."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it when sampling and in every logprob, so that KL stays a KL."""
    top_k: int = Field(0, ge=0)
    """Sample among the k likeliest tokens; 0 = all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample within this probability mass; 1 = all."""
    stop_strings: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts that end a response as EOS does, with the token that completes one of them. They stay in the response;
    the prompt's text does not count."""

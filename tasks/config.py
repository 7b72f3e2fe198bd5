"""What every stage's configuration is made of."""

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """A frozen group of options that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraConfig(Config):
    """Low-rank adapters on a frozen model (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(16, ge=1, title="Rank", description="Rank of each update matrix.")
    alpha: float = Field(32.0, gt=0, title="Alpha", description="The update is scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, title="Dropout", description="Share of adapter inputs dropped in training.")
    target_modules: str | list[str] = Field(
        "all-linear",
        title="Target modules",
        description="Names of the modules that get an adapter, or 'all-linear' for every linear layer but the head.",
    )


class SamplingConfig(Config):
    """How responses are drawn from a language model."""

    response_length: int = Field(64, ge=1, title="Response length", description="Longest response, in tokens.")
    min_new_tokens: int = Field(
        0,
        ge=0,
        title="Fewest new tokens",
        description="The end of the response is not sampled before this many tokens.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        title="Temperature",
        description="Logits are divided by it when sampling and in every logprob, so that KL stays a KL.",
    )
    top_k: int = Field(0, ge=0, title="Top k", description="Sample among the k likeliest tokens; 0 = all.")
    top_p: float = Field(1.0, gt=0, le=1, title="Top p", description="Sample within this probability mass; 1 = all.")

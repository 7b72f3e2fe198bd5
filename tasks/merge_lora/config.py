"""Options of merging an adapter into its base."""

from pydantic import Field

from tasks.config import Config


class MergeLoraConfig(Config):
    """How closely the merged model must agree with base and adapter."""

    tolerance: float = Field(0.001, gt=0)
    """Largest difference of a logit, as a share of the largest logit, in float32; more is refused."""
    saved_tolerance: float = Field(0.05, gt=0)
    """The same for the weights as saved, in the base's precision: bfloat16 rounds to 3 digits."""
    prompts: list[str] = Field(default_factory=list)
    """Texts compared on; beside them come prompts of the input `data` if given, and token sequences."""
    num_prompts: int = Field(16, ge=1)
    """Taken from `data`, and drawn from the vocabulary."""
    seed: int = Field(0, ge=0)
    """Of the drawn token sequences."""

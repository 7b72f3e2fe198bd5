"""Options of taking the policy out of what PPO saved."""

from pydantic import Field

from tasks.config import Config


class RemoveValueHeadConfig(Config):
    """On what the policy's logits are compared before and after."""

    num_rows: int = Field(16, ge=1)
    """Token sequences drawn from the vocabulary, on which logits must be equal."""
    seed: int = Field(0, ge=0)
    """Of the drawn token sequences."""

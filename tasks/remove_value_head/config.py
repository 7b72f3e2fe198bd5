"""Options of taking the policy out of what PPO saved."""

from pydantic import Field

from tasks.config import ProofConfig


class RemoveValueHeadConfig(ProofConfig):
    """On what the policy is compared before and after."""

    max_shard_size: str = Field("5GB", pattern=r"^\d+[KMG]B$")
    """A full policy's weights beyond it go into a further file; the memory needed for the work is that of two."""

"""The options of `export`: the finished model as users load it."""

from typing import Literal

from pydantic import Field

from tasks.config import Config


class ExportConfig(Config):
    """How the weights are written, and what the model card says that no artifact knows."""

    name: str = Field("Aligned model", min_length=1)
    """Title of the model card."""
    base_model: str | None = None
    """Hub name of the model that the chain started from, for the card; None if it started from scratch."""
    license: str | None = None
    """Hub identifier such as apache-2.0; the base model's terms go on applying."""
    language: list[str] = Field(default_factory=list)
    """ISO 639 codes for the card, such as en."""
    dtype: Literal["as_is", "float32", "bfloat16"] = "as_is"
    """Of the weights in the files. as_is keeps the model's own, and the export then gives equal logits."""
    max_shard_size: str = Field("5GB", pattern=r"^\d+[KMG]B$")
    """Weights beyond it go into a further file."""
    logit_tolerance: float = Field(0.05, gt=0)
    """Largest difference of a logit that a changed precision may cause, as a share of the largest. bfloat16 rounds
    each weight by up to 2^-9 of itself; without a change the logits must be equal."""

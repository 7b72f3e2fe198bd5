"""Options of merging an adapter into its base."""

from pydantic import Field

from tasks.config import ProofConfig


class MergeLoraConfig(ProofConfig):
    """How closely the merged model must agree with base and adapter, and on what they are compared."""

    tolerance: float = Field(0.001, gt=0)
    """Largest difference of a merged layer's output, and of a logit where the base is float32, as a share of the
    largest; more is refused. x(W + sBA) and xW + s(xA)B are the same number summed in another order, so float32's
    rounding, 1e-7 a sum, is all that may differ: 1e-3 leaves room for a hundred layers, and a wrong scale shows."""
    saved_tolerance: float = Field(0.05, gt=0)
    """The same for logits where the base is saved in less than float32: bfloat16 rounds each weight of the sum by up
    to 2^-9 of itself, 0.2 %, which the layers add up."""
    max_shard_size: str = Field("5GB", pattern=r"^\d+[KMG]B$")
    """Weights beyond it go into a further file; the memory needed for merging is about that of two."""

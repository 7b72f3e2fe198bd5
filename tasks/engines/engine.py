"""What draws responses from the policy: transformers in this process, or a server.

Shapes: B episodes, R = the longest response allowed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks.actor_critic.models import Models
from tasks.config import SamplingConfig
from tasks.generation import Responses, generate

Engine = Callable[[Sequence[Sequence[int]], Tensor], Responses]
"""A response to each prompt under the policy as it is now, given numbers [B, R] in [0, 1) that decide the sampling."""


@dataclass(frozen=True)
class HfEngine:
    """The policy itself decodes, `rows_at_once` responses at a time; the same numbers draw the same tokens."""

    models: Models
    sampling: SamplingConfig
    stop_ids: Sequence[int]
    tokenizer: PreTrainedTokenizerBase
    rows_at_once: int

    def __call__(self, prompts: Sequence[Sequence[int]], uniforms: Tensor) -> Responses:
        return generate(
            self.models.policy(),
            prompts,
            self.sampling,
            uniforms=uniforms,
            stop_ids=self.stop_ids,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
            rows_at_once=self.rows_at_once,
        )

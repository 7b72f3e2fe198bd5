"""How a reward model reads responses - as it does in PPO - and what it says of them.

Letter: N responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tasks.certify.config import CertifyConfig
from tasks.certify.responses import Response
from tasks.models.model_files import CONFIG, context_length
from tasks.models.modeling import load_reward_model, load_tokenizer, reads_same_tokens
from tasks.rewards.models import check_lengths, encode_answered, row_scores, was_trained_here
from tasks.rewards.sources import check_finite
from tasks.templates import ConversationTemplate


@dataclass(frozen=True)
class Reader:
    """A reward model that is not loaded yet; see tasks/rewards/sources.py for how PPO asks it."""

    folder: Path
    base: Path  # the policy's model, which a LoRA reward model needs
    tokenizer: PreTrainedTokenizerBase
    reads_policy_tokens: bool
    ends_at_eos: bool  # as ours do
    context: int | None  # the most tokens that it can attend to
    template: ConversationTemplate | None

    def row(self, response: Response) -> list[int]:
        """Its tokens of prompt and response."""
        if self.reads_policy_tokens:
            return response.prompt_ids + response.response_ids
        asked = response.prompt if self.template is None else self.template.conversation(response.prompt)
        return encode_answered(self.tokenizer, asked, response.response, self.ends_at_eos)

    def fits(self, response: Response) -> bool:
        """Whether it can attend to all of the response."""
        return self.context is None or len(self.row(response)) <= self.context

    def scores(self, groups: Mapping[str, Sequence[Response]], config: CertifyConfig) -> dict[str, NDArray[np.float64]]:
        """The scores [N] of each group's responses; raises InputError for one that is not finite."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_reward_model(self.folder, self.base, config.dtype).to(device)
        rows = [self.row(response) for responses in groups.values() for response in responses]
        check_lengths(rows, model, f"The reward model {self.folder}")
        scores = row_scores(model, rows, config.token_budget).double().cpu().numpy()
        check_finite(scores.tolist(), f"The reward model {self.folder}")
        ends = np.cumsum([len(responses) for responses in groups.values()])
        return dict(zip(groups, np.split(scores, ends[:-1]), strict=True))


def make_reader(
    folder: Path, base: Path, tokenizer: PreTrainedTokenizerBase, template: ConversationTemplate | None
) -> Reader:
    """The reader of the reward model in `folder`, for a policy with this tokenizer and template."""
    own = load_tokenizer(folder)
    return Reader(
        folder=folder,
        base=base,
        tokenizer=own,
        reads_policy_tokens=reads_same_tokens(own, tokenizer),
        ends_at_eos=was_trained_here(folder),
        context=context_length(folder if (folder / CONFIG).is_file() else base),
        template=template,
    )

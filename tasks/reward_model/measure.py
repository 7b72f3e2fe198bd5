"""The scores of a saved reward model.

Shape: N rows.
"""

from collections.abc import Sequence

from torch import Tensor

from tasks.models.modeling import ScalarModel
from tasks.rewards.models import row_scores

TOKENS_AT_ONCE = 8192


def score_rows(model: ScalarModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """The score of each row of token ids at its last token: [N] float32 on the CPU, in the order of `rows`."""
    return row_scores(model, rows, TOKENS_AT_ONCE).cpu()

"""Scores of a reward model."""

import torch
from torch import nn

from tasks.models.modeling import ScalarModel, make_scalar_head
from tasks.reward_model import measure
from tasks.reward_model.measure import score_rows


class TokensAsHidden(nn.Module):
    """A backbone whose hidden state is the token id itself, [B, T, 1]."""

    def forward(self, input_ids, attention_mask, use_cache):
        self.last_hidden_state = input_ids[..., None].float()
        return self


def test_rows_are_scored_at_their_last_token_in_their_own_order(monkeypatch):
    monkeypatch.setattr(measure, "TOKENS_AT_ONCE", 6)
    model = ScalarModel(TokensAsHidden(), make_scalar_head(torch.tensor([[2.0]]), offset=1.0))
    rows = [[5, 3], [1, 1, 1, 9], [7], [4, 4, 2]]
    assert score_rows(model, rows).tolist() == [5.0, 17.0, 13.0, 3.0]  # 2 x last token - 1

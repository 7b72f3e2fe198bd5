"""Figures of a reward model."""

import pytest
import torch
from torch import nn

from tasks.modeling import ScalarModel, make_scalar_head
from tasks.reward_model import measure
from tasks.reward_model.measure import pair_figures, score_rows, wilson_interval


class TokensAsHidden(nn.Module):
    """A backbone whose hidden state is the token id itself, [B, T, 1]."""

    def forward(self, input_ids, attention_mask, use_cache):
        self.last_hidden_state = input_ids[..., None].float()
        return self


def test_pair_accuracy_counts_higher_chosen_scores_and_ties_as_wrong():
    figures = pair_figures(torch.tensor([2.0, 1.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 5.0, -4.0]))
    assert figures.accuracy == 0.5
    assert figures.mean_margin == pytest.approx((1 + 0 - 2 + 4) / 4)


def test_wilsons_interval_of_81_in_263_is_the_textbooks():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81/263 gives 0.2553 to 0.3662
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilsons_interval_of_none_in_20_starts_at_zero():
    # Newcombe 1998, table I: 0/20 gives 0.0000 to 0.1611
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_rows_are_scored_at_their_last_token_in_their_own_order(monkeypatch):
    monkeypatch.setattr(measure, "TOKENS_AT_ONCE", 6)
    model = ScalarModel(TokensAsHidden(), make_scalar_head(torch.tensor([[2.0]]), offset=1.0))
    rows = [[5, 3], [1, 1, 1, 9], [7], [4, 4, 2]]
    assert score_rows(model, rows).tolist() == [5.0, 17.0, 13.0, 3.0]  # 2 x last token - 1

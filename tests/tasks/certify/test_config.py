"""Thresholds of the certificate."""

from typing import get_args

import pytest
from pydantic import ValidationError

from tasks.certify.config import CertifyConfig, Threshold
from tasks.rules import judge_rules

GOOD = {
    "pair_accuracy": 0.7,
    "pair_accuracy_low": 0.6,
    "ece": 0.1,
    "length_correlation": 0.1,
    "length_bias": -0.1,
    "length_matched_accuracy": 0.6,
    "split_dispersion": 1.0,
    "second_agreement": 0.7,
    "score_spread": 0.5,
    "score_shift": -1.0,
    "tokenizer_match": 1.0,
    "template_match": 1.0,
}
BAD = {
    "pair_accuracy": 0.59,
    "pair_accuracy_low": 0.49,
    "ece": 0.26,
    "length_correlation": -0.71,
    "length_bias": 0.21,
    "length_matched_accuracy": 0.49,
    "split_dispersion": 5.1,
    "second_agreement": 0.59,
    "score_spread": 0.09,
    "score_shift": 3.1,
    "tokenizer_match": 0.0,
    "template_match": 0.9,
}


def failing(figures, **options):
    return [one.measures for one in judge_rules(CertifyConfig(**options).rules(), figures) if one.verdict == "failed"]


def test_a_sound_reward_model_passes_and_each_bad_figure_fails_by_its_own_threshold() -> None:
    assert GOOD.keys() == BAD.keys() == set(get_args(Threshold))
    assert failing(GOOD) == []
    for name, value in BAD.items():
        assert failing(GOOD | {name: value}) == [name]


def test_every_threshold_can_be_moved_and_switched_off() -> None:
    for name, value in BAD.items():
        moved = {"ece": 0.9, "split_dispersion": 9.0, "score_shift": 9.0}.get(name, 0.0)
        if name.startswith("length_") and name != "length_matched_accuracy":
            moved = 1.0
        assert failing(GOOD | {name: value}, **{name: moved}) == []
        assert failing(GOOD | {name: value}, **{name: None}) == []


def test_only_thresholds_can_be_accepted() -> None:
    assert CertifyConfig(accept=["length_bias"]).accept == ["length_bias"]
    with pytest.raises(ValidationError, match="pair_accuracy_low"):
        CertifyConfig(accept=["lenght_bias"])


def test_less_memory_means_smaller_batches_and_in_the_end_no_less() -> None:
    smaller = CertifyConfig(batch_size=8, token_budget=64).with_less_memory("cpu")
    assert smaller is not None
    assert (smaller.batch_size, smaller.token_budget) == (4, 32)
    assert CertifyConfig(batch_size=1, token_budget=1).with_less_memory("cpu") is None


def test_every_option_is_described() -> None:
    properties = CertifyConfig.model_json_schema()["properties"]
    assert len(properties) > 20
    assert [name for name, field in properties.items() if not field.get("description")] == []

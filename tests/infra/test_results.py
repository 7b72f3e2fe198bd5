"""The pages of docs/results."""

from infra.results import page

RUN = {
    "sft_eval_loss": 2.5,
    "reward_pair_accuracy": None,
    "score_before": -0.5,
    "score_after": 1.25,
    "kl": 4.5,
    "win_rate": 0.8,
    "win_rate_low": 0.7,
    "win_rate_high": 0.9,
    "metrics": {"rule": {"before": 1.0, "after": 3.0, "win_rate": 0.75}},
    "samples": [{"prompt": "a|b", "sft": "No.\n", "ppo": "Yes.", "sft_score": -1.0, "ppo_score": 2.0}],
    "seconds": {"sft": 10.4, "total": 12.0},
    "peak_rss_bytes": 3 * 2**29,
}


def test_a_page_has_a_row_per_run_and_says_how_it_was_made() -> None:
    text = page("Title", "make demo", [RUN, RUN | {"kl": 5.0}], "curves.png", "Not good: nothing.")
    assert "`make demo`" in text
    assert "| 0 | 2.500 | not measured | -0.500 | 1.250 | 4.500 | 0.800 | 0.700 | 0.900 |" in text
    assert "| 1 | 2.500 | not measured | -0.500 | 1.250 | 5.000 | 0.800 | 0.700 | 0.900 |" in text
    assert "| 1 | rule | 1.000 | 3.000 | 0.750 |" in text
    assert "| a\\|b | No.<br> *(-1.00)* | Yes. *(+2.00)* |" in text
    assert "| 0 | 10 | 12 | 1.50 GiB |" in text
    assert text.endswith("Not good: nothing.")

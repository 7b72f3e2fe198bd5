"""The demo's generator gives many different sentences, and its rule scores as worked out by hand."""

from itertools import islice
from statistics import mean, stdev

import pytest

from tasks.prepare_data.demo import preference_records, prompt_records, rule_score, score_parts, sft_records

PROMPT = "Customer: My red kettle leaks water. What now?\nShop:"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        # sorry 1, kettle 1, problem 0.5, send with a day 1.5, happy to help 0.5, whole 0.5
        (
            " I am sorry that your kettle leaks water. We will send you a new kettle by Friday. We are happy to help.",
            5.0,
        ),
        # thanks 1, kettle 1, refund without a time 0.5, whole 0.5
        (" Many thanks for writing to us about your kettle. We will refund you.", 3.0),
        # whole 0.5, "calm down" and "only a" -2, kettle 1
        (" Calm down, it is only a kettle, and kettles do that.", -0.5),
        # another item -1, whole 0.5
        (" Have you seen our new lamp in the window?", -0.5),
        # too short -1
        (" No.", -1.0),
        ("", -1.0),
        # five to seven words earn and lose nothing
        (" We are closed this week.", 0.0),
        # no full stop: only the item counts
        (" we got a message about the kettle and we will read it", 1.0),
    ],
)
def test_the_rule_scores_as_worked_out_by_hand(reply: str, expected: float) -> None:
    assert rule_score([PROMPT], [reply]) == [pytest.approx(expected)]


def test_rudeness_costs_at_most_two() -> None:
    reply = " Calm down. That is your own fault. You should have read it. We cannot do anything about it."
    assert score_parts(PROMPT, reply)["rudeness"] == -2.0


def test_saying_a_sentence_again_gains_nothing_and_costs() -> None:
    once = " I am sorry that your kettle leaks water."
    # 8 words make 6 triples; 16 words make 14, of which 8 are different: 6 / 14 were said before.
    assert rule_score([PROMPT], [once * 2]) == [pytest.approx(rule_score([PROMPT], [once])[0] - 2 * 6 / 14)]


def test_help_counts_only_within_one_sentence() -> None:
    assert score_parts(PROMPT, " We will refund you. See you on Friday.")["concrete_help"] == 0.5


def test_the_rule_ignores_other_columns() -> None:
    assert rule_score([PROMPT], [" No."], answer=["42"]) == [-1.0]


@pytest.mark.parametrize("generate", [sft_records, preference_records, prompt_records])
def test_a_seed_gives_the_same_records_and_another_seed_others(generate) -> None:  # type: ignore[no-untyped-def]
    first = list(generate(seed=1, num_records=200))
    assert list(generate(seed=1, num_records=200)) == first
    other = {record["prompt"] for record in generate(seed=2, num_records=200)}
    assert len(other & {record["prompt"] for record in first}) <= 2


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    assert list(islice(sft_records(3, 100), 50)) == list(sft_records(3, 50))


def test_messages_and_replies_are_many_and_of_readable_length() -> None:
    records = list(sft_records(0, 2000))
    assert len({record["prompt"] for record in records}) > 1950
    assert len({record["completion"] for record in records}) > 1800
    lengths = [len(record["completion"].split()) for record in records]
    assert min(lengths) >= 8
    assert max(lengths) <= 40
    assert not any(mark in record["prompt"] + record["completion"] for record in records for mark in "{}|()")
    assert all("  " not in record["prompt"] + record["completion"] for record in records)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demonstrations_are_mixed_so_that_there_is_room_upward(seed: int) -> None:
    records = list(sft_records(seed, 1000))
    scores = rule_score([r["prompt"] for r in records], [r["completion"] for r in records])
    assert 1.0 < mean(scores) < 1.8
    assert stdev(scores) > 1.5
    assert -6 <= min(scores) < -1
    assert 4.5 < max(scores) <= 5


def test_pairs_stand_in_the_order_of_the_rule_but_for_some_noise() -> None:
    records = list(preference_records(0, 1000))
    prompts = [record["prompt"] for record in records]
    chosen = rule_score(prompts, [record["chosen"] for record in records])
    rejected = rule_score(prompts, [record["rejected"] for record in records])
    share = mean(better > worse for better, worse in zip(chosen, rejected, strict=True))
    assert 0.93 < share < 0.97
    assert all(better != worse for better, worse in zip(chosen, rejected, strict=True))


def test_an_advertisement_is_always_for_another_item() -> None:
    adverts = [record for record in sft_records(0, 2000) if "in the window" in record["completion"]]
    assert len(adverts) > 100
    assert all(score_parts(r["prompt"], r["completion"])["off_topic"] == -1 for r in adverts)

import random

import pytest

from tasks.repetition import commonest_phrase, distinct_n, longest_repeat, repeated_share, repetition


def test_distinct_n_counts_over_all_responses():
    responses = [[1, 2, 1, 2], [1, 2, 3]]
    # unigrams: 1 2 1 2 1 2 3 -> 3 of 7; bigrams: 12 21 12 12 23 -> 3 of 5

    assert distinct_n(responses, 1) == 3 / 7
    assert distinct_n(responses, 2) == 3 / 5


def test_responses_too_short_for_an_ngram_have_none():
    assert distinct_n([[1], []], 2) == 0
    assert repetition([1, 2, 3], n=4) == 0
    assert commonest_phrase([[1, 2, 3]], n=4) == ((), 0)


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition([1, 2, 1, 2, 1, 2], n=2) == pytest.approx(3 / 5)  # 12 21 12 21 12: three came before
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([7] * 8) == pytest.approx(4 / 5)


def test_the_commonest_phrase_counts_each_response_once():
    responses = [[5, 6, 5, 6, 5, 6], [1, 2], [1, 2, 9], [1, 2, 7]]

    assert commonest_phrase(responses, n=2) == ((1, 2), 3 / 4)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ([], 0),
        ([4], 0),
        ([1, 2, 3, 4], 0),
        ([1, 2, 3, 1], 1),
        ([1, 2, 9, 1, 2], 2),
        ([1, 2, 3, 4, 9, 1, 2, 3, 8, 2, 3, 4], 3),  # 1 2 3 twice, 2 3 4 twice; 1 2 3 4 once
        ([7] * 8, 7),  # from the first place and from the second
        ([1, 2, 1, 2, 1], 3),
    ],
)
def test_the_longest_repeat_is_the_longest_span_that_stands_at_two_places(response, expected) -> None:
    assert longest_repeat(response) == expected


def test_the_longest_repeat_agrees_with_looking_at_every_pair_of_places() -> None:
    generator = random.Random(0)
    for _ in range(200):
        response = generator.choices(range(3), k=generator.randint(0, 40))
        longest = 0
        for first in range(len(response)):
            for second in range(first + 1, len(response)):
                length = 0
                while second + length < len(response) and response[first + length] == response[second + length]:
                    length += 1
                longest = max(longest, length)
        assert longest_repeat(response) == longest


def test_the_repeated_share_is_of_the_response() -> None:
    assert repeated_share([1, 2, 9, 1, 2]) == 2 / 5
    assert repeated_share([]) == 0

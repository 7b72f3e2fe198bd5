"""Where a response's text completes a stop string."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.stop_strings import StopStrings

MERGES = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("c", "a")]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few of their pairs, so that letters stand in many tokens and one character in several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<eos>", "<|end|>", *alphabet, *("".join(pair) for pair in MERGES)]
    core = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    return tokenizer


TOKENIZER = make_tokenizer()


def ids_of(*tokens: str) -> list[int]:
    return TOKENIZER.convert_tokens_to_ids(list(tokens))


def by_definition(ids: Sequence[int], strings: Sequence[str], first: int) -> int | None:
    """The first number of tokens whose text holds a string."""
    for count in range(first + 1, len(ids) + 1):
        text = TOKENIZER.decode(ids[first:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if any(string in text for string in strings):
            return count
    return None


@pytest.mark.parametrize(
    ("tokens", "strings", "expected"),
    [
        (("a", "b", "c", "a"), ["bc"], 3),
        (("a", "b", "ca", "a"), ["bc"], 3),
        (("a", "ab", "c"), ["bc", "aa"], 2),
        (("a", "b"), ["bc"], None),
        (("a", "<|end|>", "b"), ["<|end|>"], 2),
        (("a", "<eos>"), ["<eos>"], 2),
        (("a", "Ã", "©", "b"), ["é"], 3),  # the two bytes of é
        ((), ["a"], None),
    ],
)
def test_the_end_is_the_token_that_completes_the_first_string(
    tokens: Sequence[str], strings: list[str], expected
) -> None:
    assert StopStrings(TOKENIZER, strings).end(ids_of(*tokens)) == expected


def test_tokens_before_the_first_are_not_looked_at() -> None:
    ids = ids_of("b", "c", "a", "b", "c")
    assert [StopStrings(TOKENIZER, ["bc"], first).end(ids) for first in range(6)] == [2, 5, 5, 5, None, None]


TOKENS = st.lists(st.sampled_from(ids_of("a", "b", "c", "ab", "abc", "ca", "Ġa", "<|end|>", "Ã", "©")), max_size=40)
STRINGS = st.lists(st.sampled_from(["bc", "a a", "cab", "é", "<|end|>", "aaaa", "abcabc"]), min_size=1, max_size=3)


@settings(max_examples=80, deadline=None)
@given(ids=TOKENS, strings=STRINGS, first=st.integers(0, 4))
def test_the_end_is_that_of_the_definition(ids: list[int], strings: list[str], first: int) -> None:
    assert StopStrings(TOKENIZER, strings, first).end(ids) == by_definition(ids, strings, first)


@settings(max_examples=80, deadline=None)
@given(ids=TOKENS, strings=STRINGS, first=st.integers(0, 4), num_new=st.integers(1, 8), data=st.data())
def test_a_look_at_the_last_tokens_finds_what_they_completed(
    ids: list[int], strings: list[str], first: int, num_new: int, data: st.DataObject
) -> None:
    stops, end = StopStrings(TOKENIZER, strings, first), by_definition(ids, strings, first)
    if end is None:
        assert not stops.have_ended(ids, num_new)
    else:
        assert not stops.have_ended(ids[: end - 1], num_new)
        assert stops.have_ended(ids[: end + data.draw(st.integers(0, num_new - 1))], num_new)


def test_a_character_of_three_tokens_is_found_by_a_look_at_its_last() -> None:
    ids = [*ids_of("a"), *TOKENIZER("€")["input_ids"]]
    assert len(ids) == 4
    assert StopStrings(TOKENIZER, ["€"]).have_ended(ids, 1)


def test_what_only_the_last_tokens_by_themselves_would_read_is_not_found() -> None:
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    stops = StopStrings(PreTrainedTokenizerFast(tokenizer_object=core), ["#"])
    assert stops.tokenizer.decode([2]) == "##b"  # and after another token it is only b
    assert not stops.have_ended([1, 2, 2, 2, 2], 1)
    assert stops.end([1, 2, 2, 2, 2]) is None

"""How a text became another."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.word_diff import Change, word_changes

TEXTS = st.text(st.sampled_from("ab \n\u2028é"), max_size=30)


def test_words_that_left_and_came_stand_where_they_changed() -> None:
    assert word_changes("one two three", "one 2 three four") == [
        Change(kept="one"),
        Change(gone=" two", come=" 2"),
        Change(kept=" three"),
        Change(come=" four"),
    ]


@given(TEXTS, TEXTS)
def test_the_pieces_make_both_texts(before: str, after: str) -> None:
    changes = word_changes(before, after)
    assert "".join(change.kept + change.gone for change in changes) == before
    assert "".join(change.kept + change.come for change in changes) == after

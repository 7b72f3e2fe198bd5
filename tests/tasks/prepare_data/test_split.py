"""The held-out part depends on the prompt's text alone."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tasks.prepare_data.split import side_of


def test_the_side_follows_from_the_first_digits_of_the_hash() -> None:
    share = int(hashlib.sha256(b"salt\nHello").hexdigest()[:16], 16) / 16**16
    assert side_of("Hello", share + 1e-9, "salt") == "test"
    assert side_of("Hello", share - 1e-9, "salt") == "train"


def test_about_the_wanted_share_is_held_out_and_another_salt_holds_out_others() -> None:
    texts = [f"prompt {number}" for number in range(5000)]
    held_out = {text for text in texts if side_of(text, 0.1, "a") == "test"}
    assert 430 < len(held_out) < 570
    other = {text for text in texts if side_of(text, 0.1, "b") == "test"}
    assert len(held_out & other) < 90


@given(st.text(), st.floats(0.01, 0.98), st.floats(0.0, 0.01))
def test_a_larger_share_only_adds_to_the_held_out_part(text: str, share: float, more: float) -> None:
    if side_of(text, share, "salt") == "test":
        assert side_of(text, share + more, "salt") == "test"

"""Numbers and times as a person reads them."""

import pytest

from tasks.report.rendering import duration, figure, moment


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234567, "1,234,567"), (0.000123456, "0.0001235"), (2.0, "2"), (True, "True"), ("x", "x"), (float("nan"), "nan")],
)
def test_a_figure_has_four_digits_that_count(value: object, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(8.25, "8.2 s"), (59.96, "60.0 s"), (83.4, "1 min 23 s"), (3600 + 59, "1 h 0 min")]
)
def test_seconds_are_told_in_minutes_and_hours(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_moment_is_told_to_the_minute() -> None:
    assert moment("2026-03-01T02:00:59+00:00") == "2026-03-01 02:00 UTC"

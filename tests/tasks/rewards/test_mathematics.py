import sys
from collections.abc import Iterator
from fractions import Fraction

import pytest

from tasks.rewards import mathematics
from tasks.rewards.mathematics import equal_answers, exact_number, last_boxed


@pytest.fixture
def without_math_verify(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    mathematics._symbolic_equality.cache_clear()
    yield
    mathematics._symbolic_equality.cache_clear()


EQUAL = [
    ("x+1", "x+1."),
    ("1,800", "1800"),
    ("1{,}800", "1800"),
    (r"1\,800", "1800"),
    ("1,234,567.5", "1234567.50"),
    (r"\$18", "18.0"),
    ("$18$", "18"),
    (r"50\%", "50"),
    (r"\( x^2 \)", "x^2"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"\frac{1}2", "1/2"),
    (r"-\frac{3}{4}", "-0.75"),
    (r"\frac{-3}{4}", "-3/4"),
    (r"-\frac{-3}{4}", ".75"),
    (r"\left(1, 2\right)", "(1,2)"),
    (r"\text{Tuesday}", "Tuesday"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90°"),
    ("x = 5", "5"),
    ("−3", "-3"),
    (r"we get \boxed{\frac{1}{2}}", "0.5"),
]
DIFFERENT = [
    ("18", "19"),
    ("", ""),
    ("", "0"),
    ("1,80", "180"),
    ("1/0", "0"),
    ("2\\frac{1}{2}", "21/2"),  # two and a half
    ("0.333", "1/3"),
    ("A", "a"),
    ("(1,200)", "(1,2)"),
    (r"\boxed{3", "3"),
]


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_answers_are_equal_after_normalising_or_as_numbers(without_math_verify: None, first: str, second: str) -> None:
    assert equal_answers(first, second)
    assert equal_answers(second, first)


@pytest.mark.parametrize(("first", "second"), [*DIFFERENT, ("x^2+2x+1", "(x+1)^2")])
def test_other_answers_are_not_equal(without_math_verify: None, first: str, second: str) -> None:
    assert not equal_answers(first, second)
    assert not equal_answers(second, first)


@pytest.mark.parametrize(
    ("found", "truth", "equal"),
    [
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", True),
        (r"$\frac{\pi}{2}$", r"\pi/2", True),
        (r"a \cdot b", "ba", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
        ("x^2+2x", "(x+1)^2", False),
        ("eighteen", "x", False),
        ("9^{9^{9^{9}}}", "x", False),
    ],
)
def test_formulas_are_equal_symbolically_where_math_verify_is_installed(found: str, truth: str, equal: bool) -> None:
    pytest.importorskip("math_verify")
    assert equal_answers(found, truth) is equal


def test_very_long_answers_are_not_compared_symbolically() -> None:
    assert not equal_answers("+".join(["1"] * 150), "150")


def test_it_is_said_once_whether_formulas_are_compared(without_math_verify: None, capsys) -> None:
    for _ in range(3):
        equal_answers("x", "y")
    assert capsys.readouterr().out.count("math-verify is not installed") == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", Fraction(18)),
        ("+.5", Fraction(1, 2)),
        ("-1,800.25", Fraction(-180025, 100)),
        ("3/4", Fraction(3, 4)),
        (r"-\frac{1}{3}", Fraction(-1, 3)),
        ("1,80", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("1e5", None),
        ("٣", None),
        ("x", None),
    ],
)
def test_exact_numbers(text: str, number: Fraction | None) -> None:
    assert exact_number(text) == number


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{}", ""),
        (r"\boxed{\{1\}}", r"\{1\}"),
        ("none", None),
        (r"\boxed{1} \boxed{2", None),
    ],
)
def test_the_last_box(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside

r"""Whether two written answers are the same: after normalising, as exact numbers, or symbolically.

Normalising takes away what does not change an answer in a competition: white space, the \boxed{} around it, `x =`
before it, a full stop after it, dollar and per-cent signs, degrees, \text{}, \left and \right, LaTeX's spaces; and
\dfrac12 is \frac{1}{2}.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache

LONGEST_SYMBOLIC = 200  # characters; what is longer is compared as text and as a number only
SYMBOLIC_TIMEOUT_S = 1  # so that 9^{9^{9^{9}}} cannot hold a training

_REPLACEMENTS = (
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°"), ""),
    (re.compile(r"(?<!\\)\\[,;:! ]|~|\s"), ""),
    (re.compile(r"\\?[$%]|(?<!\\)\\[()\[\]]"), ""),
    (re.compile("−"), "-"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\frac(\d)"), r"\\frac{\1}"),
    (re.compile(r"(\\frac\{[^{}]*\})(\d)"), r"\1{\2}"),
    (re.compile(r"^[a-zA-Z]=|\.$"), ""),
)
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}", re.ASCII)
_NUMBER = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+|\d{1,3}(?:,\d{3})+(?:\.\d*)?)(?:/(\d+))?", re.ASCII)


def equal_answers(found: str, truth: str) -> bool:
    """Whether `found` says what `truth` says; an empty answer says nothing."""
    first, second = normalised(found), normalised(truth)
    if not first or not second:
        return False
    if first == second:
        return True
    numbers = exact_number(first), exact_number(second)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if max(len(first), len(second)) > LONGEST_SYMBOLIC:
        return False
    symbolically_equal = _symbolic_equality()
    return symbolically_equal is not None and symbolically_equal(_formula(found), _formula(truth))


def normalised(answer: str) -> str:
    """`answer` without what does not change it; see the module's docstring."""
    boxed = last_boxed(answer)
    text = (answer if boxed is None else boxed).strip()
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def exact_number(text: str) -> Fraction | None:
    r"""The number that a normalised answer is - 18, 1,800, 0.5, 1/2 or \frac{1}{2} - or None."""
    if fraction := _FRACTION.fullmatch(text):
        text = f"{fraction[1]}{fraction[2]}/{fraction[3]}".removeprefix("--")
    number = _NUMBER.fullmatch(text)
    if number is None or (number[3] and not int(number[3])):
        return None
    return Fraction(number[1] + number[2].replace(",", "")) / int(number[3] or 1)


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{} of `text` holds, braces inside it included; None if there is none, or it never ends."""
    _, mark, rest = text.rpartition(r"\boxed{")
    depth = 1
    for place, letter in enumerate(rest if mark else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[:place]
    return None


def _formula(answer: str) -> str:
    """`answer` as the inside of a LaTeX formula."""
    boxed = last_boxed(answer)
    return re.sub(r"\\?\$|(?<!\\)\\[()\[\]]", "", answer if boxed is None else boxed).strip()


@cache
def _symbolic_equality() -> Callable[[str, str], bool] | None:
    """math-verify's judgement of two formulas, or None where it is not installed; which it is, is printed once."""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("math-verify is not installed (extra `math`): answers are equal as text or as numbers only.")
        return None

    def equal(found: str, truth: str) -> bool:
        gold, answer = (parse(f"${text}$", parsing_timeout=SYMBOLIC_TIMEOUT_S) for text in (truth, found))
        return bool(verify(gold, answer, timeout_seconds=SYMBOLIC_TIMEOUT_S))

    print("Answers that differ as text and as numbers are compared by math-verify.")
    return equal

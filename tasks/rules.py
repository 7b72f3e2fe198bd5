"""Bounds on a report's figures, and the verdict of each."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.config import Config
from tasks.errors import InputError
from tasks.markdown import table

PASSED, FAILED, NOT_APPLICABLE, ACCEPTED = "passed", "failed", "not applicable", "accepted"


class Rule(Config):
    """What a figure has to be, alone or as a multiple of another."""

    figure: str = Field(min_length=1)
    """Name of a figure in the report.json of what is judged."""
    least: float | None = Field(None, allow_inf_nan=False)
    """The smallest value that passes."""
    most: float | None = Field(None, allow_inf_nan=False)
    """The largest value that passes."""
    relative_to: str | None = Field(None, min_length=1)
    """Another figure: what has to lie between the bounds is then figure / relative_to."""

    @property
    def measures(self) -> str:
        """What is compared with the bounds, as a person reads it."""
        return self.figure if self.relative_to is None else f"{self.figure} / {self.relative_to}"

    @property
    def demand(self) -> str:
        """The bounds, as a person reads them."""
        bounds = [(self.least, "≥"), (self.most, "≤")]
        return " and ".join(f"{sign} {bound:g}" for bound, sign in bounds if bound is not None)

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Rule":
        if self.least is None and self.most is None:
            raise ValueError(f"the rule on {self.figure} has no bound; set least, most or both")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"the rule on {self.figure} can never pass: least {self.least:g} > most {self.most:g}")
        return self


class Verdict(Config):
    """A rule, what was measured, and what came of it; accepted is what failed and is let through by the config."""

    measures: str
    demand: str
    measured: float | None
    verdict: Literal["passed", "failed", "not applicable", "accepted"]
    why: str = ""


def judge_rules(rules: Sequence[Rule], report: Mapping[str, Any]) -> list[Verdict]:
    """The verdict of every rule on a report's figures.

    A figure that the report names among `not_measured` (a pattern of names: the reason) makes its rule not
    applicable. Raises InputError for one that it does not know at all.
    """
    return [_verdict(rule, report) for rule in rules]


def is_open(verdicts: Sequence[Verdict]) -> bool:
    """Whether no rule failed."""
    return not any(verdict.verdict == FAILED for verdict in verdicts)


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table with a row for each rule."""
    rows = [[f"`{one.measures}`", one.demand, _shown(one.measured), one.verdict, one.why] for one in verdicts]
    return table(["Figure", "Has to be", "Measured", "Verdict", ""], rows)


def as_text(verdicts: Sequence[Verdict]) -> str:
    """A line for each rule, for a log or a state's message."""
    lines = [
        f"  {one.verdict}: {one.measures} is {_shown(one.measured)}, has to be {one.demand}"
        + (f" ({one.why})" if one.why else "")
        for one in verdicts
    ]
    return "\n".join(lines)


def nearest(name: str, known: Collection[str]) -> str:
    """The names among `known` that were perhaps meant, as a sentence; empty where there are none."""
    near = difflib.get_close_matches(name, [str(one) for one in known], n=3)
    return f" Did you mean {', '.join(near)}?" if near else ""


def _verdict(rule: Rule, report: Mapping[str, Any]) -> Verdict:
    for name in (rule.figure, rule.relative_to):
        if name is not None and name not in report:
            why = _reason(name, report)
            return Verdict(measures=rule.measures, demand=rule.demand, measured=None, verdict=NOT_APPLICABLE, why=why)
    measured = _number(rule.figure, report)
    if rule.relative_to is not None:
        against = _number(rule.relative_to, report)
        measured = measured / against if against else math.nan
    holds = (rule.least is None or measured >= rule.least) and (rule.most is None or measured <= rule.most)
    verdict = PASSED if holds and not math.isnan(measured) else FAILED
    return Verdict(measures=rule.measures, demand=rule.demand, measured=measured, verdict=verdict)


def _reason(name: str, report: Mapping[str, Any]) -> str:
    """Why the report has no such figure."""
    for pattern, reason in report.get("not_measured", {}).items():
        if fnmatchcase(name, pattern):
            return str(reason)
    raise InputError(f"There is no figure {name!r}.{nearest(name, report)} Correct the rule.")


def _number(name: str, report: Mapping[str, Any]) -> float:
    value = report[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"The figure {name} is {value!r:.80}, and a rule needs a number. Name another figure.")
    return float(value)


def _shown(measured: float | None) -> str:
    return "not measured" if measured is None else f"{measured:.4g}"

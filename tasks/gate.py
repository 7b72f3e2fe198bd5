"""Whether a model may go out: rules on the evaluation's figures.

The figures' names are those of the evaluation's report.json; docs/evaluation.md says what each means.
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field

from tasks.config import Config
from tasks.rules import Rule, Verdict, judge_rules, nearest


class GateConfig(Config):
    """What a model has to prove before it is exported. None switches a rule off."""

    champion_win_rate: float | None = Field(0.5, ge=0, le=1)
    """Least win rate over the champion by the evaluation's first judge. Not applicable where there is no champion."""
    champion_win_rate_low: float | None = Field(0.45, ge=0, le=1)
    """Least lower end of that win rate's 95 % interval: how surely the model has to be no worse. At 200 prompts the
    interval reaches about 0.07 to either side."""
    tax: float | None = Field(0.05, ge=0)
    """Largest rise of the perplexity on held-out SFT records over the SFT model's, as a share: the alignment tax."""
    length_change: float | None = Field(0.2, ge=0, lt=1)
    """Largest change of the mean response length against the SFT model's, as a share, to either side."""
    metric_drop: float | None = Field(0.05, ge=0)
    """Largest fall of the mean of any of evaluate.metrics against the SFT model, in the metric's own unit."""
    rules: list[Rule] = Field(default_factory=list)
    """Further rules, on any figure of the evaluation."""

    def all_rules(self, metrics: Collection[str]) -> list[Rule]:
        """The rules that are switched on; `metrics` are the names of evaluate.metrics."""
        rules = [
            Rule(figure=figure, least=least)
            for figure, least in (
                ("champion_win_rate", self.champion_win_rate),
                ("champion_win_rate_low", self.champion_win_rate_low),
            )
            if least is not None
        ]
        if self.tax is not None:
            rules.append(Rule(figure="tax", most=self.tax))
        if self.length_change is not None:
            least, most = 1 - self.length_change, 1 + self.length_change
            length = "response_length"
            rules.append(
                Rule(figure=f"{length}_after", relative_to=f"{length}_before", least=least, most=round(most, 9))
            )
        if self.metric_drop is not None:
            rules += [Rule(figure=f"{metric}_difference", least=-self.metric_drop) for metric in metrics]
        return rules + self.rules


def check_figures(config: GateConfig, metrics: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError, with the nearest names, for a rule on a figure that is not among the `known` patterns."""
    for rule in config.all_rules(metrics):
        for name in (rule.figure, rule.relative_to):
            if name is not None and not any(fnmatchcase(name, pattern) for pattern in known):
                raise ValueError(f"gate: the evaluation has no figure {name!r}.{nearest(name, known)}")


def judge(config: GateConfig, metrics: Collection[str], report: Mapping[str, Any]) -> list[Verdict]:
    """The verdict of every rule on the evaluation's report; see judge_rules."""
    return judge_rules(config.all_rules(metrics), report)

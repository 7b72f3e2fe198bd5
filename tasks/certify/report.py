"""The certificate as a person reads it: a Markdown page with the verdict first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.certify.figures import Figures
from tasks.certify.names import GROUPS, MEANINGS, QUANTILES
from tasks.certify.responses import Sample
from tasks.markdown import escape, table
from tasks.rules import ACCEPTED, FAILED, Verdict, as_markdown

TITLES = {
    "chosen": "chosen responses",
    "rejected": "rejected responses",
    "demonstrations": "demonstrations",
    "sft": "answers of the SFT model",
}
ENDS = ("_low", "_high")


@dataclass(frozen=True)
class Page:
    """What the page is made of."""

    figures: Figures
    verdicts: Sequence[Verdict]
    tokenizer: str
    template: str
    samples: Sequence[Sample]


def markdown(page: Page) -> str:
    """The page: verdict, thresholds, figures, reliability, score distributions, tokens, answers of the SFT model."""
    parts = [
        "# The reward model's certificate",
        f"**{verdict(page.verdicts)}**",
        "## Thresholds",
        as_markdown(page.verdicts),
        "## Figures",
        _figures_table(page.figures.by_name),
        *_reliability(page.figures),
        *_splits(page.figures),
        "## Scores",
        _scores_table(page.figures.by_name),
        "## Tokenizer and template",
        f"{escape(page.tokenizer)}\n\n{escape(page.template)}",
        "## Answers of the SFT model with the highest and the lowest scores",
        table(
            ["Prompt", "Answer", "Score"],
            [[escape(one.prompt), escape(one.response.strip()), f"{one.score:+.2f}"] for one in page.samples],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(verdicts: Sequence[Verdict]) -> str:
    """What the thresholds come to, in a sentence."""
    failed, accepted = ([one.measures for one in verdicts if one.verdict == which] for which in (FAILED, ACCEPTED))
    if failed:
        return f"PPO must not follow this reward model: {', '.join(failed)} failed."
    if accepted:
        return f"PPO may follow this reward model; it failed by {', '.join(accepted)}, which the config accepts."
    return "PPO may follow this reward model: no threshold failed."


def _figures_table(figures: Mapping[str, float]) -> str:
    rows = [
        [f"`{name}`", _number(figures[name]) + _interval(name, figures), meaning]
        for name, meaning in MEANINGS.items()
        if name in figures
    ]
    return table(["Figure", "Value (95 % interval)", "Meaning"], rows)


def _interval(name: str, figures: Mapping[str, float]) -> str:
    ends = [figures.get(f"{name}{end}") for end in ENDS]
    return "" if None in ends else f" ({ends[0]:.3f} to {ends[1]:.3f})"


def _reliability(figures: Figures) -> list[str]:
    if not figures.reliability:
        return []
    rows = [
        [f"{one.low:.2f} to {one.high:.2f}", str(one.num_pairs), f"{one.confidence:.3f}", f"{one.accuracy:.3f}"]
        for one in figures.reliability
    ]
    return ["## Reliability", table(["sigmoid(margin's size)", "Pairs", "Mean", "Right"], rows)]


def _splits(figures: Figures) -> list[str]:
    if not figures.split_accuracies:
        return []
    shares = ", ".join(f"{share:.3f}" for share in figures.split_accuracies)
    return [f"Pair accuracy in each part of the held-out pairs, which share no prompt: {shares}."]


def _scores_table(figures: Mapping[str, float]) -> str:
    columns = ["mean", "std", *QUANTILES]
    rows = [
        [TITLES[group], *(_number(figures[f"score_{column}_{group}"]) for column in columns)]
        for group in GROUPS
        if f"score_mean_{group}" in figures
    ]
    return table(["Of", *columns], rows)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"

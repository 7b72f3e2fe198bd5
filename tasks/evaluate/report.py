"""The evaluation as a person reads it: a Markdown page with the verdict first."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluate.comparison import SCORE
from tasks.markdown import escape, table

COLLAPSED_SHARE = 0.5
_TEXT_ROWS = (
    ("Response length, tokens", "response_length", ".1f"),
    ("Ended by themselves", "ended_share", ".1%"),
    ("Distinct-1", "distinct_1", ".3f"),
    ("Distinct-2", "distinct_2", ".3f"),
    ("Repeated 4-grams within a response", "repetition", ".1%"),
    ("Responses with the commonest 4-gram", "commonest_phrase_share", ".1%"),
)


def markdown(figures: Mapping[str, Any], judges: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> str:
    """The page: verdict, metrics table, and `samples` side by side."""
    parts = [
        "# PPO against SFT",
        "\n".join(verdict(figures, judges)),
        "## Figures",
        _figures_table(figures, judges),
        f"## {len(samples)} of {figures['num_prompts']} prompts, chosen at random",
        _samples_table(samples, judges),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(figures: Mapping[str, Any], judges: Sequence[str]) -> list[str]:
    """What the figures come to, a sentence each: who wins by each judge, how far PPO went, what looks like collapse."""
    sentences = [_who_wins(figures, judge) for judge in judges]
    sentences[0] = f"**{sentences[0]}**"
    sentences.append(
        f"PPO's responses are {figures['kl']:.2f} nats from SFT "
        f"(95 % interval {figures['kl_low']:.2f} to {figures['kl_high']:.2f})."
    )
    if {_edge(figures, judge) for judge in judges} >= {1, -1}:
        sentences.append("The judges disagree: PPO may have learnt to please one of them. Read the samples.")
    share = figures["commonest_phrase_share_after"]
    if share >= COLLAPSED_SHARE and share > figures["commonest_phrase_share_before"]:
        phrase = escape(figures["commonest_phrase_after"].strip())
        sentences.append(f"{share:.0%} of PPO's responses contain “{phrase}”: it may have collapsed to a phrase.")
    return sentences


def title(judge: str) -> str:
    """The judge's name at the head of a row or an axis."""
    return "Score" if judge == SCORE else judge


def _edge(figures: Mapping[str, Any], judge: str) -> int:
    """1 if PPO is better than SFT by the judge, -1 if worse, 0 if the 95 % interval of the win rate holds 1/2."""
    return int(figures[f"{judge}_win_rate_low"] > 0.5) - int(figures[f"{judge}_win_rate_high"] < 0.5)


def _who_wins(figures: Mapping[str, Any], judge: str) -> str:
    findings = {1: "PPO beats SFT", -1: "PPO loses to SFT", 0: "No clear difference between PPO and SFT"}
    by = "the reward model's score" if judge == SCORE else f"`{judge}`"
    name = f"{judge}_win_rate"
    return (
        f"{findings[_edge(figures, judge)]} by {by}: PPO wins {figures[name]:.1%} "
        f"of {figures['num_prompts']} prompts (95 % interval {_ends(figures, name, '.1%')})."
    )


def _ends(figures: Mapping[str, Any], name: str, form: str) -> str:
    return f"{figures[f'{name}_low']:{form}} to {figures[f'{name}_high']:{form}}"


def _figures_table(figures: Mapping[str, Any], judges: Sequence[str]) -> str:
    rows = []
    for judge in judges:
        means = [f"{figures[f'{judge}_{side}']:.3f}" for side in ("before", "after")]
        difference, win_rate = f"{judge}_difference", f"{judge}_win_rate"
        rows.append([title(judge), *means, f"{figures[difference]:+.3f} ({_ends(figures, difference, '+.3f')})"])
        won = f"{figures[win_rate]:.1%} ({_ends(figures, win_rate, '.1%')})"
        rows.append([f"{title(judge)}: PPO's win rate", "", "", won])
    rows.append(["KL to SFT, nats", "", "", f"{figures['kl']:.3f} ({_ends(figures, 'kl', '.3f')})"])
    for head, name, form in _TEXT_ROWS:
        before, after = figures[f"{name}_before"], figures[f"{name}_after"]
        rows.append([head, f"{before:{form}}", f"{after:{form}}", ""])
    return table(["", "SFT", "PPO", "Difference or figure (95 % interval)"], rows)


def _samples_table(samples: Sequence[Mapping[str, Any]], judges: Sequence[str]) -> str:
    def cell(sample: Mapping[str, Any], side: str) -> str:
        marks = ", ".join(f"{judge} {sample[f'{judge}_{side}']:.2f}" for judge in judges)
        return f"{escape(sample[side])} <br>*{escape(marks)}*"

    rows = [[escape(sample["prompt"]), cell(sample, "before"), cell(sample, "after")] for sample in samples]
    return table(["Prompt", "SFT", "PPO"], rows)

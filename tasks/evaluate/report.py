"""The evaluation as a person reads it: a Markdown page with the verdict first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.evaluate.canaries import diff
from tasks.evaluate.names import ANSWER_ROWS, LABELS, PERPLEXITY_ROW, SCORE, SECOND_SCORE, SIDES
from tasks.markdown import escape, table

COLLAPSED_SHARE = 0.5
_TITLES = {SCORE: "Score", SECOND_SCORE: "Second score"}
_BY = {SCORE: "the reward model's score", SECOND_SCORE: "the second reward model's score"}
_RIVALS = {"": "before", "champion_": "champion"}  # what stands before a figure's name: whom PPO is compared with


@dataclass(frozen=True)
class Page:
    """What the page is made of."""

    figures: Mapping[str, Any]
    judges: Sequence[str]
    samples: Sequence[Mapping[str, Any]]
    llm: str | None = None
    canaries: Sequence[Mapping[str, str]] = ()
    speed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=lambda: LABELS)

    @property
    def sides(self) -> list[str]:
        """Whose figures there are, in the order of the columns."""
        return [side for side in LABELS if f"response_length_{side}" in self.figures]


def markdown(page: Page) -> str:
    """The page: verdict, figures, win rates over each rival, canaries and samples side by side, speed."""
    parts = [
        f"# {page.labels['after']} against {page.labels['before']}",
        "\n".join(verdict(page.figures, page.judges, page.labels)),
        "## Figures",
        _figures_table(page),
        "## Win rates",
        _win_rates_table(page),
        *_speed(page),
        *_canaries(page),
        f"## {len(page.samples)} of {page.figures['num_prompts']} prompts, chosen at random",
        _samples_table(page),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(figures: Mapping[str, Any], judges: Sequence[str], labels: Mapping[str, str] = LABELS) -> list[str]:
    """What the figures come to, a sentence each: who wins by each judge, how far PPO went, what looks like collapse."""
    own, rival = labels["after"], labels["before"]
    sentences = [_who_wins(figures, judge, "", labels) for judge in judges]
    sentences[0] = f"**{sentences[0]}**"
    if "champion_win_rate" in figures:
        sentences.append(_who_wins(figures, judges[0], "champion_", labels))
    sentences.append(
        f"{own}'s responses are {figures['kl']:.2f} nats from {rival} "
        f"(95 % interval {figures['kl_low']:.2f} to {figures['kl_high']:.2f})."
    )
    if {_edge(figures, f"{judge}_win_rate") for judge in judges} >= {1, -1}:
        sentences.append(f"The judges disagree: {own} may have learnt to please one of them. Read the samples.")
    share = figures["commonest_phrase_share_after"]
    if share >= COLLAPSED_SHARE and share > figures["commonest_phrase_share_before"]:
        phrase = escape(figures["commonest_phrase_after"].strip())
        sentences.append(f"{share:.0%} of {own}'s responses contain “{phrase}”: it may have collapsed to a phrase.")
    return sentences


def title(judge: str) -> str:
    """The judge's name at the head of a row or an axis."""
    return _TITLES.get(judge, judge)


def _edge(figures: Mapping[str, Any], name: str) -> int:
    """1 if PPO is better by this win rate, -1 if worse, 0 if its 95 % interval holds 1/2."""
    return int(figures[f"{name}_low"] > 0.5) - int(figures[f"{name}_high"] < 0.5)


def _who_wins(figures: Mapping[str, Any], judge: str, pair: str, labels: Mapping[str, str]) -> str:
    own, rival = labels["after"], labels[_RIVALS[pair]] if not pair else "the champion"
    findings = {
        1: f"{own} beats {rival}",
        -1: f"{own} loses to {rival}",
        0: f"No clear difference between {own} and {rival}",
    }
    name = f"{pair}{judge}_win_rate"
    return (
        f"{findings[_edge(figures, name)]} by {_BY.get(judge, f'`{judge}`')}: {own} wins {figures[name]:.1%} "
        f"of {figures['num_prompts']} prompts (95 % interval {_ends(figures, name, '.1%')})."
    )


def _ends(figures: Mapping[str, Any], name: str, form: str) -> str:
    return f"{figures[f'{name}_low']:{form}} to {figures[f'{name}_high']:{form}}"


def _figures_table(page: Page) -> str:
    figures = page.figures

    def row(head: str, name: str, form: str, last: str = "") -> list[str]:
        cells = [figures.get(f"{name}_{side}") for side in page.sides]
        return [head, *("" if cell is None else f"{cell:{form}}" for cell in cells), last]

    rows = []
    for judge in page.judges:
        difference = f"{judge}_difference"
        last = f"{figures[difference]:+.3f} ({_ends(figures, difference, '+.3f')})"
        rows.append(row(title(judge), judge, ".3f", last))
        if f"greedy_{judge}_after" in figures:
            difference = f"greedy_{difference}"
            last = f"{figures[difference]:+.3f} ({_ends(figures, difference, '+.3f')})"
            rows.append(row(f"{title(judge)}, greedy", f"greedy_{judge}", ".3f", last))
    last = f"{figures['kl']:.3f} ({_ends(figures, 'kl', '.3f')})"
    rows.append(row(f"KL to {page.labels['before']}, nats", "kl", ".3f", last))
    tax = f"{figures['tax']:+.1%}" if "tax" in figures else ""
    rows += [row(*one, tax if one[1] == "perplexity" else "") for one in (*ANSWER_ROWS, PERPLEXITY_ROW)]
    heads = [page.labels[side] for side in page.sides]
    return table(["", *heads, f"{page.labels['after']} - {page.labels['before']} (95 % interval)"], rows)


def _win_rates_table(page: Page) -> str:
    """A row for each judge and rival: of PPO's answers, sampled, greedy, and by the language model."""
    rows = []
    modes = [("", "sampled"), ("greedy_", "greedy")]
    for pair, rival in _RIVALS.items():
        for judge in [*page.judges, *([page.llm] if page.llm else [])]:
            for mode, answers in modes:
                name = f"{mode}{pair}{judge}_win_rate"
                if name in page.figures:
                    rows.append([page.labels[rival], f"{title(judge)}, {answers}", *_win_rate(page.figures, name)])
    heads = ["Over", "By", "Win rate (95 % interval)", "Sign test", "At equal length"]
    return table(heads, rows) + _about_the_llm(page)


def _win_rate(figures: Mapping[str, Any], name: str) -> list[str]:
    rate = f"{figures[name]:.1%} ({_ends(figures, name, '.1%')})"
    return [rate, f"p = {figures[f'{name}_p_value']:.2g}", f"{figures[f'{name}_length_controlled']:.1%}"]


def _about_the_llm(page: Page) -> str:
    if not page.llm:
        return ""
    bias, agreement, ties = (page.figures[f"{page.llm}_{name}"] for name in ("position_bias", "agreement", "tie_share"))
    return (
        f"\n\n`{page.llm}` saw each pair in both orders: the same verdict on {agreement:.0%} of the prompts, "
        f"{ties:.0%} ties, and the answer shown first ahead by {bias:+.0%}."
    )


def _canaries(page: Page) -> list[str]:
    """Every canary's answers, the later ones as changes of the first; the section is left out where there are none."""
    if not page.canaries:
        return []
    sides = [side for side in ("before", "champion", "after") if side in page.canaries[0]]
    rows = [
        [escape(row["prompt"]), escape(row["before"].strip())]
        + [diff(row["before"].strip(), row[side].strip()) for side in sides[1:]]
        for row in page.canaries
    ]
    heads = ["Canary", *(page.labels[side] for side in sides)]
    return ["## Canaries, answered greedily", table(heads, rows)]


def _samples_table(page: Page) -> str:
    def cell(sample: Mapping[str, Any], side: str) -> str:
        marks = ", ".join(f"{judge} {sample[f'{judge}_{side}']:.2f}" for judge in page.judges)
        return f"{escape(sample[side])} <br>*{escape(marks)}*"

    sides = [side for side in LABELS if page.samples and side in page.samples[0]]
    rows = [[escape(sample["prompt"]), *(cell(sample, side) for side in sides)] for sample in page.samples]
    return table(["Prompt", *(page.labels[side] for side in sides)], rows)


def _speed(page: Page) -> list[str]:
    if not page.speed:
        return []
    rows = [
        [page.labels[SIDES[name]], _number(speed, "tokens_per_s", ".0f"), _number(speed, "latency_s", ".3f")]
        for name, speed in page.speed.items()
    ]
    return ["## Speed", table(["", "Tokens per second, in batches", "Seconds for a prompt alone"], rows)]


def _number(figures: Mapping[str, float], name: str, form: str) -> str:
    return f"{figures[name]:{form}}" if name in figures else "not measured"

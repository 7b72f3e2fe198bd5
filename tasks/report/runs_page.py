"""The page that compares the last runs of a pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.report.figures import first_judge
from tasks.report.page import duration_of
from tasks.report.plots import Chart, Line, svg
from tasks.report.rendering import render
from tasks.retention.runs import RunRecord

TONES = {"exported": "good", "refused": "bad", "uncertified": "bad", "failed": "bad", "running": "wait"}
WORDS = {
    "exported": "exported",
    "refused": "refused by the gate",
    "uncertified": "refused by the certificate",
    "failed": "failed",
    "running": "not ended",
}


@dataclass(frozen=True)
class Row:
    """A run in the table, newest first."""

    number: int  # from the oldest shown, 1
    record: RunRecord
    word: str
    tone: str
    duration: str
    judge: str | None
    is_champion: bool

    def number_of(self, name: str, form: str) -> str:
        """The figure as text; empty where it was not measured."""
        value = self.record.figures.get(name)
        return "" if value is None else f"{value:{form}}"

    @property
    def score(self) -> str:
        """The first judge's mean, before and after PPO."""
        if self.judge is None:
            return ""
        return f"{self.number_of(f'{self.judge}_before', '.2f')} → {self.number_of(f'{self.judge}_after', '.2f')}"


def runs_page(pipeline: str, records: Sequence[RunRecord], store: str) -> str:
    """The page for `records`, the oldest first."""
    champion = next((record.run for record in reversed(records) if record.champion), None)
    rows = [
        Row(
            number=number,
            record=record,
            word=WORDS[record.outcome],
            tone=TONES[record.outcome],
            duration=duration_of(record),
            judge=first_judge(record.figures),
            is_champion=record.run == champion,
        )
        for number, record in enumerate(records, 1)
    ]
    pictures = [(chart, svg(chart)) for chart in charts(rows)]
    return render("runs.html.j2", pipeline=pipeline, rows=rows[::-1], pictures=pictures, store=store)


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Win rate, score, KL and tax over the runs that measured them; champions are stars, refused models crosses."""
    found = [
        _chart(rows, "win rate over SFT", {"win rate": "win_rate"}, level=0.5),
        _chart(rows, "win rate over the champion", {"win rate": "champion_win_rate"}, level=0.5),
        _chart(rows, "score", {"PPO": "{judge}_after", "SFT": "{judge}_before"}),
        _chart(rows, "KL to SFT, nats per response", {"KL": "kl"}),
        _chart(rows, "alignment tax", {"tax": "tax"}, level=0.0),
    ]
    return [chart for chart in found if chart.lines]


def _chart(rows: Sequence[Row], title: str, names: Mapping[str, str], level: float | None = None) -> Chart:
    """A line for each of `names` (label: figure, in which {judge} is the run's own); the first one bears the marks."""
    lines = [line for label, pattern in names.items() if (line := _line(rows, label, pattern))]
    records = {row.number: row.record for row in rows}
    points = dict(zip(lines[0].x, lines[0].y, strict=True)) if lines else {}
    stars = {number: value for number, value in points.items() if records[int(number)].champion}
    crosses = {number: value for number, value in points.items() if records[int(number)].outcome == "refused"}
    span = (0.5, len(rows) + 0.5)
    return Chart(title, lines, "run", level=level, stars=stars, crosses=crosses, span=span)


def _line(rows: Sequence[Row], label: str, pattern: str) -> Line | None:
    """The figure of the runs that measured it, with its interval where it has one."""
    named = [(row.number, pattern.format(judge=row.judge), row.record.figures) for row in rows]
    measured = [(number, name, figures) for number, name, figures in named if name in figures]
    if not measured:
        return None
    low, high = (
        [figures.get(f"{name}_{end}", figures[name]) for _, name, figures in measured] for end in ("low", "high")
    )
    return Line(label, [each[0] for each in measured], [figures[name] for _, name, figures in measured], low, high)

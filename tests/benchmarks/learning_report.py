"""The page and the plot of what time_to_reward.py measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tasks.markdown import table

BASELINE = "TRL 1.12.0"
COLLAPSED = 0.5  # of the distinct pairs of words before training: fewer, and the answers repeat one phrase
COLUMNS = (
    "mode",
    "learning rate",
    "score, least and most of the seeds",
    "KL",
    "score - kl_coef KL",
    "ended",
    "distinct-2",
    "collapsed seeds",
    "CPU s in all",
    "CPU s to TRL's last score",
    "to its last score - kl_coef KL",
)
Points = Sequence[Mapping[str, float]]


def as_markdown(measured: Mapping[str, Any], picture: str) -> str:
    """The page: how it was measured, the table of modes, the plot, and the tuning."""
    modes = measured["modes"]
    tunings = [
        [name, *(f"{rate}: {value:.2f}" for rate, value in mode["tried"].items())] for name, mode in modes.items()
    ]
    return "\n\n".join(
        [
            "# Time to reward",
            f"`{measured['command']}`",
            measured["provenance"],
            table(COLUMNS, [_row(name, modes, measured["kl_coef"]) for name in modes]),
            f"![score over CPU seconds]({picture})",
            f"## The tuning: learning rate and score - {measured['kl_coef']} KL, the mean of the tuning seeds",
            "\n".join(f"- {name}: {', '.join(tried)}" for name, *tried in tunings),
        ]
    )


def plot(measured: Mapping[str, Any], path: Path) -> None:
    """Draw the mean score of each mode over CPU seconds, over episodes and over KL, with the span of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for place, (over, label) in enumerate((("cpu_s", "CPU seconds"), ("episodes", "episodes"), ("kl", "KL, nats"))):
        panel = figure.add_subplot(1, 3, place + 1)
        for name, mode in measured["modes"].items():
            along = mean_course(mode["courses"], over)
            score = mean_course(mode["courses"], "score")
            [line] = panel.plot(along, score, label=name, linewidth=1.6)
            if over != "kl":
                spans = [[course[step]["score"] for course in mode["courses"]] for step in range(len(score))]
                panel.fill_between(
                    along, *zip(*[(min(s), max(s)) for s in spans], strict=True), color=line.get_color(), alpha=0.12
                )
        panel.set_xlabel(label)
        panel.set_ylabel("score of held-out answers")
        panel.grid(alpha=0.25)
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def mean_course(courses: Sequence[Points], name: str) -> list[float]:
    """A figure at each point, its mean over the seeds."""
    return [mean(course[step][name] for course in courses) for step in range(len(courses[0]))]


def reached(courses: Sequence[Points], target: float, kl_coef: float = 0.0) -> float | None:
    """CPU seconds after which score - kl_coef KL of the mean course first is `target`, between two points; or None."""
    scores, kls, seconds = (mean_course(courses, name) for name in ("score", "kl", "cpu_s"))
    values = [score - kl_coef * kl for score, kl in zip(scores, kls, strict=True)]
    for step in range(1, len(values)):
        if values[step] >= target:
            share = (target - values[step - 1]) / (values[step] - values[step - 1])
            return seconds[step - 1] + share * (seconds[step] - seconds[step - 1])
    return None


def _row(name: str, modes: Mapping[str, Any], kl_coef: float) -> list[str]:
    courses, last = modes[name]["courses"], [course[-1] for course in modes[name]["courses"]]
    scores = [point["score"] for point in last]
    collapsed = sum(
        point["distinct_2"] < COLLAPSED * course[0]["distinct_2"] for point, course in zip(last, courses, strict=True)
    )
    return [
        name,
        f"{modes[name]['learning_rate']:g}",
        f"{mean(scores):.2f} ({min(scores):.2f} to {max(scores):.2f})",
        f"{mean(point['kl'] for point in last):.2f}",
        f"{_last(courses, kl_coef):.2f}",
        *(f"{mean(point[figure] for point in last):.3g}" for figure in ("ended", "distinct_2")),
        f"{collapsed} of {len(courses)}",
        f"{mean(point['cpu_s'] for point in last):.0f}",
        *(_time_to_trls_last(courses, modes[BASELINE]["courses"], coef) for coef in (0.0, kl_coef)),
    ]


def _last(courses: Sequence[Points], kl_coef: float) -> float:
    return mean(course[-1]["score"] - kl_coef * course[-1]["kl"] for course in courses)


def _time_to_trls_last(courses: Sequence[Points], theirs: Sequence[Points], kl_coef: float) -> str:
    """Ours, and how many times as long TRL takes."""
    target = _last(theirs, kl_coef)
    ours, trl = reached(courses, target, kl_coef), reached(theirs, target, kl_coef)
    return "not reached" if ours is None or trl is None else f"{ours:.0f} ({trl / ours:.2f}x)"

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
    "ended",
    "distinct-2",
    "collapsed seeds",
    "CPU s in all",
    "CPU s to TRL's last score",
    "TRL's CPU s / this",
    "episodes to it",
)
Points = Sequence[Mapping[str, float]]


def as_markdown(measured: Mapping[str, Any], picture: str) -> str:
    """The page: how it was measured, the table of modes, the plot, and the tuning."""
    modes = measured["modes"]
    tried = [[name, *(f"{rate}: {value:.2f}" for rate, value in mode["tried"].items())] for name, mode in modes.items()]
    return "\n\n".join(
        [
            "# Time to reward",
            f"`{measured['command']}`",
            measured["provenance"],
            table(COLUMNS, [_row(name, modes) for name in modes]),
            f"![score over CPU seconds]({picture})",
            f"## The tuning: learning rate and score - {measured['kl_coef']} KL of one run each",
            table(["mode", "", "", ""], tried),
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


def reached(courses: Sequence[Points], score: float, name: str) -> float | None:
    """Where the mean course first has the score: its CPU seconds or episodes, between two points; None: nowhere."""
    scores, along = mean_course(courses, "score"), mean_course(courses, name)
    for step in range(1, len(scores)):
        if scores[step] >= score:
            share = (score - scores[step - 1]) / (scores[step] - scores[step - 1])
            return along[step - 1] + share * (along[step] - along[step - 1])
    return None


def _row(name: str, modes: Mapping[str, Any]) -> list[str]:
    courses, last = modes[name]["courses"], [course[-1] for course in modes[name]["courses"]]
    target = mean_course(modes[BASELINE]["courses"], "score")[-1]
    theirs = reached(modes[BASELINE]["courses"], target, "cpu_s")
    ours, episodes = (reached(courses, target, along) for along in ("cpu_s", "episodes"))
    scores = [point["score"] for point in last]
    collapsed = sum(
        point["distinct_2"] < COLLAPSED * course[0]["distinct_2"] for point, course in zip(last, courses, strict=True)
    )
    return [
        name,
        f"{modes[name]['learning_rate']:g}",
        f"{mean(scores):.2f} ({min(scores):.2f} to {max(scores):.2f})",
        *(f"{mean(point[figure] for point in last):.3g}" for figure in ("kl", "ended", "distinct_2")),
        f"{collapsed} of {len(courses)}",
        f"{mean(point['cpu_s'] for point in last):.0f}",
        *(["not reached", "", ""] if ours is None else [f"{ours:.0f}", f"{theirs / ours:.2f}", f"{episodes:.0f}"]),
    ]

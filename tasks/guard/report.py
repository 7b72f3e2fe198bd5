"""What the guard did, for people and for report.json."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tasks.guard.history import Alarm, History, Rewind
from tasks.markdown import escape, table

NUM_TOLD = 3  # alarms: where one metric is not finite, others follow


def as_line(rewind: Rewind) -> str:
    """A rewind in one line of the log."""
    return (
        f"iteration {rewind.iteration}: the guard's alarm: {as_text(rewind.alarms)}. Back to the weights of iteration "
        f"{rewind.to_iteration}, learning rates x {rewind.learning_rate_scale:.4g}, kl_coef "
        f"{rewind.kl_coef_before:.4g} -> {rewind.kl_coef_after:.4g}"
        + (". That was once more than guard.max_rewinds: the run ends" if rewind.ends_run else "")
    )


def as_text(alarms: Sequence[Alarm]) -> str:
    """Alarms in a few words: the first three."""
    more = [f"and {len(alarms) - NUM_TOLD} more"] if len(alarms) > NUM_TOLD else []
    return "; ".join([*map(_as_text, alarms[:NUM_TOLD]), *more])


def as_figures(history: History) -> dict[str, Any]:
    """What report.json tells: how often the run went back, whether it was ended, and each time's alarms and changes."""
    return {
        "num_rewinds": len(history.rewinds),
        "stopped_by_guard": history.has_stopped,
        "rewinds": [
            asdict(rewind) | {"alarms": [_plain(alarm) for alarm in rewind.alarms]} for rewind in history.rewinds
        ],
    }


def as_markdown(history: History, result: int) -> str:
    """What report.md tells, with a row for each alarm; empty where there was none."""
    if not history.rewinds:
        return ""
    verdict = (
        f"**The guard stopped this run** on its alarm number {len(history.rewinds)}; the result is the policy of "
        f"iteration {result}, the best of those from before."
        if history.has_stopped
        else f"The guard sent this run back on {len(history.rewinds)} alarms; then it came to its end."
    )
    header = ["iteration", "alarm", "value", "limit", "back to", "learning rates x", "kl_coef"]
    rows = [_row(rewind, alarm) for rewind in history.rewinds for alarm in rewind.alarms]
    return f"{verdict}\n\n{table(header, rows)}\n\n"


def _row(rewind: Rewind, alarm: Alarm) -> list[str]:
    numbers = [f"{number:.4g}" for number in (alarm.value, alarm.limit)]
    changes = [f"{rewind.learning_rate_scale:.4g}", f"{rewind.kl_coef_before:.4g} → {rewind.kl_coef_after:.4g}"]
    return [str(rewind.iteration), escape(alarm.name), *numbers, str(rewind.to_iteration), *changes]


def _as_text(alarm: Alarm) -> str:
    if not math.isfinite(alarm.value):
        return f"{alarm.name} is {alarm.value}"
    return f"{alarm.name}: {alarm.value:.4g} where the limit is {alarm.limit:.4g}"


def _plain(alarm: Alarm) -> dict[str, Any]:
    """The alarm as strict JSON: a number that is not finite as text."""
    return {
        name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
        for name, value in asdict(alarm).items()
    }

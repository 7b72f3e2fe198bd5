"""What the guard remembers of a run: numbers alone, so that a resumed run decides like an undisturbed one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

Record = Mapping[str, float]  # the watched metrics of an iteration


@dataclass(frozen=True)
class Alarm:
    """A threshold that was passed."""

    name: str  # of the threshold in GuardConfig, or the metric that is not finite
    value: float
    limit: float
    since: int  # only checkpoints of fewer iterations are trusted


@dataclass(frozen=True)
class Rewind:
    """A time that the run went back."""

    iteration: int  # after which there was the alarm
    to_iteration: int  # that the weights are of
    alarms: tuple[Alarm, ...]
    learning_rate_scale: float  # from here on, of both learning rates
    kl_coef_before: float
    kl_coef_after: float
    ends_run: bool


@dataclass(frozen=True)
class Peak:
    """The highest mean of a second signal over a window, and the mean score there."""

    iteration: int
    value: float
    score: float


@dataclass(frozen=True)
class Checkpoint:
    """One that a run may go back to, and how things stood then."""

    iteration: int
    best_iteration: int | None
    kl_coef: float
    num_rewinds: int = 0


@dataclass(frozen=True)
class History:
    """What was seen and done so far."""

    start: Record | None = None
    recent: tuple[Record, ...] = ()  # of the last `window` iterations, oldest first
    peaks: Mapping[str, Peak] = field(default_factory=dict)  # by second signal
    checkpoints: tuple[Checkpoint, ...] = ()  # oldest first
    rewinds: tuple[Rewind, ...] = ()

    @property
    def learning_rate_scale(self) -> float:
        """What both learning rates are multiplied by."""
        return self.rewinds[-1].learning_rate_scale if self.rewinds else 1.0

    @property
    def has_stopped(self) -> bool:
        """Whether the guard ended the run."""
        return bool(self.rewinds) and self.rewinds[-1].ends_run

    @property
    def needed(self) -> set[int]:
        """Iterations whose checkpoints a rewind may want."""
        numbers = {number for kept in self.checkpoints for number in (kept.iteration, kept.best_iteration)}
        return {number for number in numbers if number is not None}

    def after(self, record: Record, iteration: int, window: int, second_signals: Sequence[str]) -> "History":
        """With an iteration that gave no alarm."""
        recent = (*self.recent, record)[-window:]
        peaks = dict(self.peaks)
        for name in second_signals if len(recent) == window else ():
            value = mean(recent, f"score_{name}")
            if name not in peaks or value > peaks[name].value:
                peaks[name] = Peak(iteration, value, mean(recent, "score"))
        return replace(self, start=self.start or record, recent=recent, peaks=peaks)

    def after_checkpoint(self, new: Checkpoint, window: int) -> "History":
        """With a new checkpoint; those are left out that no later alarm can want."""
        known = [kept for kept in self.checkpoints if kept.iteration < new.iteration]
        known.append(replace(new, num_rewinds=len(self.rewinds)))
        bounds = [new.iteration - window, *(peak.iteration for peak in self.peaks.values())]
        wanted = [_newest_before(bound, known) for bound in bounds]
        kept = [one for one in known if one in wanted or one.iteration >= new.iteration - window]
        return replace(self, checkpoints=tuple(kept))

    def after_rewind(self, rewind: Rewind, before: "History") -> "History":
        """What was seen by then, given the history `before` of that checkpoint, and what was done until now."""
        good = tuple(kept for kept in self.checkpoints if kept.iteration == rewind.to_iteration)
        return replace(before, checkpoints=good, rewinds=(*self.rewinds, rewind))

    def last_good(self, since: int) -> Checkpoint | None:
        """The newest checkpoint of fewer iterations than `since`; the oldest where all are of more."""
        return _newest_before(since, self.checkpoints) if self.checkpoints else None


def mean(records: Sequence[Record], name: str) -> float:
    """Of a metric over records that all have it."""
    return fmean(record[name] for record in records)


def _newest_before(bound: int, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    return next((kept for kept in reversed(checkpoints) if kept.iteration < bound), checkpoints[0])

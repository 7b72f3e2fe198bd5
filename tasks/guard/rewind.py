"""Where a run goes back to on an alarm, and what it changes; pure functions of what was seen."""

from collections.abc import Sequence

from tasks.errors import InputError
from tasks.guard.config import GuardConfig
from tasks.guard.history import Alarm, History, Rewind
from tasks.guard.report import as_text


def plan_rewind(
    alarms: Sequence[Alarm], history: History, iteration: int, kl_coef: float, config: GuardConfig
) -> Rewind:
    """The way back from iteration `iteration`, where kl_coef stood at `kl_coef`.

    Raises InputError where there is none: no checkpoint, or the last time back would lead to the start.
    """
    num_rewinds = len(history.rewinds)
    good = history.last_good(min((alarm.since for alarm in alarms), default=iteration - config.window))
    if good is None:
        raise missing_checkpoint(alarms, iteration, "every checkpoint")
    ends_run = num_rewinds >= config.max_rewinds
    if ends_run and good.iteration == 0:
        raise InputError(
            f"{_told(alarms, iteration)} It has gone back {num_rewinds} times (guard.max_rewinds), and no checkpoint "
            "after the start is good. Lower learning_rate and value_learning_rate, raise kl_coef, or mend what scores."
        )
    return Rewind(
        iteration=iteration,
        to_iteration=good.iteration,
        alarms=tuple(alarms),
        learning_rate_scale=history.learning_rate_scale * config.learning_rate_factor,
        kl_coef_before=kl_coef,
        kl_coef_after=good.kl_coef * config.kl_coef_factor ** (num_rewinds + 1 - good.num_rewinds),
        ends_run=ends_run,
    )


def missing_checkpoint(alarms: Sequence[Alarm], iteration: int, what: str) -> InputError:
    """The error of an alarm that cannot be answered because what should be gone back to is not there."""
    return InputError(
        f"{_told(alarms, iteration)} It cannot go back: {what} is missing. Start anew in another --output, with lower "
        "learning rates or a higher kl_coef."
    )


def _told(alarms: Sequence[Alarm], iteration: int) -> str:
    return f"Iteration {iteration}: the guard's alarm: {as_text(alarms)}."

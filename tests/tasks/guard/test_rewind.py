import math

import pytest

from tasks.errors import InputError
from tasks.guard.config import GuardConfig
from tasks.guard.history import Alarm, Checkpoint, History, Rewind
from tasks.guard.rewind import plan_rewind

EARLY, LATE = Alarm("max_kl", 300.0, 200.0, since=25), Alarm("min_entropy", 0.0, 0.01, since=28)
CHECKPOINTS = (Checkpoint(0, 0, 0.1), Checkpoint(10, 10, 0.2, num_rewinds=1), Checkpoint(26, 10, 0.4, num_rewinds=2))
GONE_BACK = tuple(Rewind(number, 0, (EARLY,), 0.5**number, 0.1, 0.2, ends_run=False) for number in (1, 2))
HISTORY = History(checkpoints=CHECKPOINTS, rewinds=GONE_BACK)


def plan(*alarms: Alarm, history: History = HISTORY, **options: float) -> Rewind:
    return plan_rewind(alarms, history, 30, 0.5, GuardConfig(**options))


def test_it_leads_to_the_newest_checkpoint_that_every_alarm_trusts() -> None:
    assert plan(LATE).to_iteration == 26
    assert plan(LATE, EARLY).to_iteration == 10
    assert plan(LATE, EARLY).alarms == (LATE, EARLY)


def test_a_process_that_saw_no_alarm_itself_trusts_what_is_older_than_the_window() -> None:
    assert plan(window=3).to_iteration == 26
    assert plan(window=4).to_iteration == 10


def test_rates_fall_from_where_they_stand_and_kl_coef_rises_from_where_the_checkpoint_was() -> None:
    rewind = plan(EARLY, learning_rate_factor=0.1, kl_coef_factor=3.0)
    assert rewind.learning_rate_scale == pytest.approx(0.25 * 0.1)
    assert (rewind.kl_coef_before, rewind.kl_coef_after) == (0.5, pytest.approx(0.2 * 3 * 3))  # third time, 1 in it
    assert plan(LATE, kl_coef_factor=3.0).kl_coef_after == pytest.approx(0.4 * 3)


def test_once_more_than_allowed_ends_the_run() -> None:
    assert [plan(EARLY, max_rewinds=number).ends_run for number in (3, 2, 1)] == [False, True, True]


def test_the_start_is_gone_back_to_but_is_no_result() -> None:
    only_start = History(checkpoints=CHECKPOINTS[:1], rewinds=GONE_BACK)
    assert plan(EARLY, history=only_start, max_rewinds=3).to_iteration == 0
    with pytest.raises(InputError, match=r"Iteration 30: .*max_kl: 300 .* gone back 2 times .* Lower learning_rate"):
        plan(EARLY, history=only_start, max_rewinds=2)


def test_without_any_checkpoint_there_is_no_way_back() -> None:
    broken = Alarm("score", math.nan, math.inf, since=25)
    with pytest.raises(InputError, match=r"score is nan. It cannot go back: every checkpoint is missing. Start anew"):
        plan(broken, history=History())

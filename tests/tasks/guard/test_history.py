from dataclasses import asdict

from pydantic import TypeAdapter

from tasks.guard.history import Alarm, Checkpoint, History, Peak, Rewind
from tests.tasks.guard.records import HEALTHY


def seen(*rules: float, window: int = 2, first: int = 1) -> History:
    """The history of iterations in which the rule gave these means."""
    history = History()
    for iteration, rule in enumerate(rules, start=first):
        record = {**HEALTHY, "score_rule": rule, "score": float(iteration)}
        history = history.after(record, iteration, window, ["rule"])
    return history


def at(iteration: int, best: int | None = 0) -> Checkpoint:
    return Checkpoint(iteration, best, kl_coef=0.1)


def rewind(**changes: object) -> Rewind:
    alarms = (Alarm("max_kl", 300.0, 200.0, since=9),)
    options = {"iteration": 14, "to_iteration": 5, "alarms": alarms, "learning_rate_scale": 0.25}
    return Rewind(**options | {"kl_coef_before": 0.1, "kl_coef_after": 0.2, "ends_run": False} | changes)


def iterations(history: History) -> list[int]:
    return [kept.iteration for kept in history.checkpoints]


def test_the_start_is_the_first_iteration_and_the_newest_are_recent() -> None:
    history = seen(1.0, 2.0, 3.0)
    assert history.start["score_rule"] == 1.0
    assert [record["score_rule"] for record in history.recent] == [2.0, 3.0]


def test_a_peak_is_the_highest_mean_over_a_whole_window() -> None:
    assert seen(9.0).peaks == {}
    assert seen(1.0, 5.0, 6.0, 2.0).peaks == {"rule": Peak(iteration=3, value=5.5, score=2.5)}


def test_of_checkpoints_those_in_the_window_stay_and_the_newest_before_it() -> None:
    history = History()
    for iteration in range(0, 31, 5):
        history = history.after_checkpoint(at(iteration), window=10)
    assert iterations(history) == [15, 20, 25, 30]  # 15 is from before 30 - 10


def test_the_newest_checkpoint_from_before_a_peak_stays_too() -> None:
    history = seen(1.0, 5.0, 6.0, *[2.0] * 20)  # the peak is at 3
    for iteration in range(0, 24, 2):
        history = history.after_checkpoint(at(iteration), window=2)
    assert iterations(history) == [2, 18, 20, 22]


def test_a_checkpoint_written_again_counts_once() -> None:
    history = History().after_checkpoint(at(0), window=5).after_checkpoint(at(4), window=5)
    assert history.after_checkpoint(at(4, best=4), window=5).checkpoints == (at(0), at(4, best=4))


def test_a_checkpoint_knows_how_often_the_run_had_gone_back() -> None:
    history = History(rewinds=(rewind(), rewind())).after_checkpoint(at(6), window=5)
    assert history.checkpoints[-1].num_rewinds == 2


def test_after_a_rewind_it_remembers_what_was_seen_by_then_and_what_was_done_until_now() -> None:
    before = seen(1.0, 2.0).after_checkpoint(at(0), window=2)
    now = History(checkpoints=(at(0), at(5), at(12)), rewinds=(rewind(iteration=7),), peaks={"rule": Peak(9, 9.0, 9.0)})
    after = now.after_rewind(rewind(), before)
    assert (after.start, after.recent, after.peaks) == (before.start, before.recent, before.peaks)
    assert after.checkpoints == (at(5),)
    assert [one.iteration for one in after.rewinds] == [7, 14]


def test_the_last_good_is_the_newest_from_before_the_alarm_built_up() -> None:
    history = History(checkpoints=(at(0), at(10), at(20, best=20)))
    assert history.last_good(21) == at(20, best=20)
    assert history.last_good(20) == at(10)
    assert history.last_good(-3) == at(0)
    assert History().last_good(20) is None


def test_what_is_needed_are_the_checkpoints_and_the_best_of_their_time() -> None:
    history = History(checkpoints=(at(0, best=None), at(10, best=5), at(20, best=20)))
    assert history.needed == {0, 5, 10, 20}


def test_the_last_rewind_tells_the_scale_and_whether_the_run_ended() -> None:
    assert (History().learning_rate_scale, History().has_stopped) == (1.0, False)
    history = History(rewinds=(rewind(learning_rate_scale=0.5), rewind()))
    assert (history.learning_rate_scale, history.has_stopped) == (0.25, False)
    assert History(rewinds=(rewind(ends_run=True),)).has_stopped


def test_it_comes_back_from_json_as_it_was() -> None:
    history = seen(1.0, 5.0, 1 / 3).after_checkpoint(at(3), window=2)
    history = History(**{**vars(history), "rewinds": (rewind(),)})
    adapter = TypeAdapter(History)
    assert adapter.validate_json(adapter.dump_json(history)) == history
    assert asdict(history)["recent"][1]["score_rule"] == 1 / 3

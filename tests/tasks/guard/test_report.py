import json
import math

from tasks.guard.history import Alarm, History, Rewind
from tasks.guard.report import as_figures, as_line, as_markdown, as_text

BLOWN_UP = Rewind(
    iteration=14,
    to_iteration=5,
    alarms=(Alarm("max_kl", 300.0, 200.0, since=9), Alarm("policy_loss", math.nan, math.inf, since=9)),
    learning_rate_scale=0.5,
    kl_coef_before=0.1,
    kl_coef_after=0.2,
    ends_run=False,
)
STOPPED = Rewind(**{**vars(BLOWN_UP), "iteration": 20, "ends_run": True})


def test_a_line_tells_what_when_and_what_was_changed() -> None:
    assert as_line(BLOWN_UP) == (
        "iteration 14: the guard's alarm: max_kl: 300 where the limit is 200; policy_loss is nan. Back to the weights "
        "of iteration 5, learning rates x 0.5, kl_coef 0.1 -> 0.2"
    )
    assert as_line(STOPPED).endswith("That was once more than guard.max_rewinds: the run ends")


def test_of_many_alarms_the_first_three_are_told() -> None:
    alarms = [Alarm(f"metric_{number}", math.nan, math.inf, since=0) for number in range(5)]
    assert as_text(alarms) == "metric_0 is nan; metric_1 is nan; metric_2 is nan; and 2 more"
    assert as_text(alarms[:3]) == "metric_0 is nan; metric_1 is nan; metric_2 is nan"


def test_the_figures_are_strict_json() -> None:
    figures = json.loads(json.dumps(as_figures(History(rewinds=(BLOWN_UP, STOPPED))), allow_nan=False))
    assert (figures["num_rewinds"], figures["stopped_by_guard"]) == (2, True)
    first = figures["rewinds"][0]
    assert (first["iteration"], first["to_iteration"], first["kl_coef_after"]) == (14, 5, 0.2)
    assert first["alarms"][0] == {"name": "max_kl", "value": 300.0, "limit": 200.0, "since": 9}
    assert first["alarms"][1]["value"] == "nan"


def test_the_page_has_a_row_for_each_alarm_and_says_whether_the_run_was_stopped() -> None:
    page = as_markdown(History(rewinds=(BLOWN_UP,)), result=40)
    assert page.startswith("The guard sent this run back on 1 alarms")
    assert "| 14 | max\\_kl | 300 | 200 | 5 | 0.5 | 0.1 → 0.2 |" in page
    assert "| 14 | policy\\_loss | nan | inf | 5 | 0.5 | 0.1 → 0.2 |" in page
    stopped = as_markdown(History(rewinds=(BLOWN_UP, STOPPED)), result=10)
    assert "**The guard stopped this run** on its alarm number 2; the result is the policy of iteration 10" in stopped


def test_a_run_without_alarms_has_nothing_to_tell() -> None:
    assert as_markdown(History(), result=40) == ""
    assert as_figures(History()) == {"num_rewinds": 0, "stopped_by_guard": False, "rewinds": []}

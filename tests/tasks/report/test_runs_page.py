"""The comparison of a pipeline's last runs."""

from tasks.report.runs_page import Row, charts, runs_page
from tasks.retention.runs import RunRecord
from tasks.rules import Verdict
from tests.tasks.report.made_run import EVALUATION, FAILED
from tests.tasks.report.test_page import Parsed


def record(number: int, **changed: object) -> RunRecord:
    figures = {name: value for name, value in EVALUATION.items() if isinstance(value, int | float)}
    fields = {
        "pipeline": "nightly",
        "run": f"{number}-of-them",
        "started": f"2026-03-0{number}T02:00:00+00:00",
        "ended": f"2026-03-0{number}T02:10:00+00:00",
        "state": "completed",
        "figures": figures | {"win_rate": 0.5 + number / 10},
        "champion": f"file:///export-{number}",
    }
    return RunRecord.model_validate(fields | changed)


def rows(*records: RunRecord) -> list[Row]:
    return [Row(number, each, "", "", "", "score", False) for number, each in enumerate(records, 1)]


def test_the_newest_run_stands_first_and_the_champions_are_marked() -> None:
    refused = record(3, state="failed", champion=None, verdicts=[FAILED])
    broken = record(4, state="failed", champion=None, figures={}, error="no memory")
    page = runs_page("nightly", [record(1), record(2), refused, broken], "s3://bucket/prefix")
    text = Parsed(page).text
    assert "The last 4 runs" in text
    assert "4 2026-03-04 02:00 UTC failed 10 min 0 s 4-of-the" in text
    assert "3 2026-03-03 02:00 UTC refused by the gate 80.0% 70.0% to 80.0% 52.0% -0.50 → 1.25 4.50 +3.1%" in text
    assert "2 2026-03-02 02:00 UTC exported ★ champion 70.0%" in text
    assert "1 2026-03-01 02:00 UTC exported ★ was champion 60.0%" in text
    assert text.index("2026-03-04") < text.index("2026-03-01")


def test_the_charts_show_what_was_measured_with_champions_and_refusals() -> None:
    refused = record(3, state="failed", champion=None, verdicts=[FAILED])
    broken = record(2, state="failed", champion=None, figures={})
    found = {chart.title: chart for chart in charts(rows(record(1), broken, refused))}
    assert list(found) == [
        "win rate over SFT",
        "win rate over the champion",
        "score",
        "KL to SFT, nats per response",
        "alignment tax",
    ]
    win_rate = found["win rate over SFT"]
    [line] = win_rate.lines
    assert (list(line.x), list(line.y)) == ([1, 3], [0.6, 0.8])
    assert (list(line.low or ()), list(line.high or ())) == ([0.7, 0.7], [0.8, 0.8])
    assert (dict(win_rate.stars), dict(win_rate.crosses), win_rate.level) == ({1: 0.6}, {3: 0.8}, 0.5)
    assert [line.label for line in found["score"].lines] == ["PPO", "SFT"]
    assert win_rate.span == (0.5, 3.5)


def test_runs_that_measured_nothing_have_a_table_and_no_charts() -> None:
    verdict = Verdict(measures="<b>", demand="<i>", measured=None, verdict="failed")
    broken = record(1, state="failed", champion=None, figures={}, verdicts=[verdict], pipeline="<script>")
    page = runs_page("<script>", [broken], "file:///store")
    assert "<svg" not in page
    assert "<script" not in page
    assert "refused by the gate" in page

"""Curves as SVG for a page."""

import re
import xml.etree.ElementTree as ET

import pytest

from tasks.report.curves import charts
from tasks.report.facts import StageFacts
from tasks.report.plots import Chart, Line, describe, svg
from tasks.retention.runs import StageRun

CHART = Chart("loss", [Line("training", [1, 2, 3], [4.0, 2.0, 1.5]), Line("held out", [1, 3], [4.5, 2.5])])


def test_each_line_is_a_path_through_its_points() -> None:
    root = ET.fromstring(svg(CHART))
    paths = [each for each in root.iter("{http://www.w3.org/2000/svg}path") if "--series-1" in str(each.attrib)]
    drawn = [each.get("d", "") for each in paths]
    [line] = [path for path in drawn if path.count("L") == 2 and "C" not in path]
    heights = [float(number) for number in re.findall(r"[ML] [\d.]+ ([\d.]+)", line)]
    assert (heights[1] - heights[0]) / (heights[2] - heights[1]) == pytest.approx(2.0 / 0.5)


def test_the_colours_are_the_pages_and_the_size_is_left_to_it() -> None:
    picture = svg(CHART)
    used = set(re.findall(r"var\([\w-]+\)", picture))
    assert used == {"var(--series-1)", "var(--series-2)", "var(--muted)", "var(--line)"}
    assert re.findall(r"#0\d0\d0\d", picture) == []
    assert not {"width", "height"} & set(ET.fromstring(picture).attrib)


def test_two_pictures_of_a_page_share_no_id() -> None:
    def ids(chart: Chart) -> set[str]:
        return set(re.findall(r'id="([^"]+)"', svg(chart)))

    other = Chart("score", CHART.lines)
    assert ids(CHART)
    assert not ids(CHART) & ids(other)
    assert svg(CHART) == svg(CHART)


def test_the_words_tell_where_a_line_starts_ends_and_lies() -> None:
    assert describe(CHART) == (
        "Plot of loss over step: training from 4 to 1.5, between 1.5 and 4, 3 points; "
        "held out from 4.5 to 2.5, between 2.5 and 4.5, 2 points."
    )


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    chart = Chart("loss", [Line("training", [1, 2, 3], [1.0, float("nan"), 2.0])])
    assert "nan" not in svg(chart).lower().replace("nance", "")
    assert describe(chart).endswith("2 points.")
    assert describe(Chart("loss", [Line("training", [1], [float("inf")])])).endswith("no finite value.")


def test_a_stage_shows_what_it_measured_and_when_the_guard_went_back() -> None:
    first = b'{"step": 1, "score": 1.0, "score_model": 1.0, "score_rule": 2.0, "score_std": 0.5}'
    metrics = first + b'\n{"step": 2, "score": 2.0}\n'
    files = {"metrics.jsonl": metrics, "report.json": b'{"rewinds": [{"iteration": 2}]}'}
    found = charts(StageFacts(StageRun(stage="ppo", uri="file:///x"), "d", "ppo", files=files))
    assert [chart.title for chart in found] == ["score", "score by model", "score by rule"]
    assert found[0].lines == [Line("rollouts", (1, 2), (1.0, 2.0))]
    assert [tuple(chart.events) for chart in found] == [(2,)] * 3
    assert charts(StageFacts(StageRun(stage="export", uri="file:///x"), "d", "export", files=files)) == []

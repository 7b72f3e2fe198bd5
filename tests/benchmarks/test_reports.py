import pytest

from tests.benchmarks import learning_report


def course(scores: list[float]) -> list[dict[str, float]]:
    """Points two CPU seconds and ten episodes apart."""
    return [
        {"score": score, "cpu_s": 2.0 * step, "episodes": 10.0 * step, "kl": 1.0, "ended": 1.0, "distinct_2": 0.2}
        for step, score in enumerate(scores)
    ]


def test_a_score_is_reached_between_two_points_of_the_mean_course() -> None:
    courses = [course([0.0, 1.0, 3.0]), course([0.0, 3.0, 5.0])]  # in the mean 0, 2, 4
    assert learning_report.mean_course(courses, "score") == [0.0, 2.0, 4.0]
    assert learning_report.reached(courses, 3.0) == pytest.approx(3.0)
    assert learning_report.reached(courses, 4.5) is None
    assert learning_report.reached(courses, 3.0, kl_coef=0.5) == pytest.approx(3.5)  # of 0, 2, 4 less 0.5 KL each


def test_the_table_holds_each_mode_against_trls_last_score(tmp_path) -> None:
    slow, quick = course([0.0, 1.0, 2.0]), course([0.0, 2.0, 4.0])
    quick[-1]["distinct_2"] = 0.09  # less than half of what it was
    modes = {
        name: {"tried": {"0.1": 1.5}, "learning_rate": 0.1, "courses": [points] * 2}
        for name, points in ((learning_report.BASELINE, slow), ("ours", quick))
    }
    measured = {"modes": modes, "command": "c", "provenance": "p", "kl_coef": 0.1}
    lines = learning_report.as_markdown(measured, "x.png").splitlines()
    [row] = [line for line in lines if line.startswith("| ours | 0.1 ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == "4.00 (4.00 to 4.00)"
    assert cells[3:5] == ["1.00", "3.90"]
    assert cells[7:] == ["2 of 2", "4", "2 (2.00x)", "2 (2.00x)"]
    learning_report.plot(measured, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000

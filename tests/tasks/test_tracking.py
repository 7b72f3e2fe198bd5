import json
import struct
import time

from tasks.tracking import MetricsLog, plot_curves, read_metrics


def test_each_step_is_a_line_of_json_with_its_total_and_time(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, 4, {"loss": 2.5})
    log.write(2, 4, {"loss": 2.0, "kl": 0.1})

    first, second = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert abs(first.pop("time") - time.time()) < 60
    assert first == {"step": 1, "total_steps": 4, "loss": 2.5}
    assert (second["step"], second["loss"], second["kl"]) == (2, 2.0, 0.1)


def test_a_new_run_starts_a_new_log(tmp_path):
    MetricsLog(tmp_path).write(1, 4, {"loss": 2.5})

    MetricsLog(tmp_path)

    assert read_metrics(tmp_path) == []
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write(step, 9, {"loss": float(step)})

    MetricsLog(tmp_path, resume_step=3).write(4, 9, {"loss": 40.0})

    assert [(record["step"], record["loss"]) for record in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_line_that_was_cut_off_is_neither_read_nor_kept(tmp_path):
    MetricsLog(tmp_path).write(1, 4, {"loss": 2.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')

    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    MetricsLog(tmp_path, resume_step=2).write(2, 4, {"loss": 2.0})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_without_a_log_there_are_no_records(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_log_is_the_only_file_it_leaves(tmp_path):
    MetricsLog(tmp_path, resume_step=2).write(1, 1, {})

    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def png_size(path):
    """Width and height, from the header that the PNG specification gives."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_curves_have_a_panel_for_each_metric_that_occurs(tmp_path):
    records = [{"step": step, "loss": 1 / step, "kl": step, "score": 0.5} for step in range(1, 4)]

    plot_curves(records, ["loss", "never"], tmp_path / "one.png")
    plot_curves(records, ["loss", "kl"], tmp_path / "two.png")
    plot_curves([*records, {"step": 4, "eval": 1.0}], ["loss", "kl", "score", "eval"], tmp_path / "four.png")

    (width, height) = png_size(tmp_path / "one.png")
    assert png_size(tmp_path / "two.png") == (2 * width, height)
    assert png_size(tmp_path / "four.png") == (3 * width, 2 * height)


def test_no_records_give_an_empty_picture(tmp_path):
    plot_curves([], ["loss"], tmp_path / "none.png")

    assert png_size(tmp_path / "none.png")[0] > 0

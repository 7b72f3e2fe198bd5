"""Prompts with their answers, written, read, printed and as Markdown."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.samples import Sample, append_samples, as_markdown, print_samples, read_samples


def test_samples_are_appended_and_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    first, second = [Sample(0, "a", "b", 1.5), Sample(0, "c", "ü\n", -1.0)], [Sample(10, "a", "d", 0.0)]
    append_samples(path, first)
    append_samples(path, second)
    assert read_samples(path) == first + second
    assert path.read_text().splitlines()[0] == '{"step": 0, "prompt": "a", "response": "b", "score": 1.5}'
    assert "ü" in path.read_text()  # for a person to read


def test_without_a_file_there_are_no_samples(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "samples.jsonl") == []


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text())
def test_whatever_a_model_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, response: str
) -> None:
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    samples = [Sample(1, prompt, response, 0.5), Sample(2, response, prompt, 0.5)]
    append_samples(path, samples)
    assert read_samples(path) == samples


@pytest.mark.parametrize("separator", ["\n", "\r", "\u2028", "\u2029", "\u0085", "\x1c"])
def test_what_some_take_for_the_end_of_a_line_stays_in_the_answer(tmp_path: Path, separator: str) -> None:
    samples = [Sample(1, "a", f"b{separator}c", 0.5)]
    append_samples(tmp_path / "samples.jsonl", samples)
    assert read_samples(tmp_path / "samples.jsonl") == samples


def test_answers_are_printed_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    print_samples([Sample(3, "[red]a[/red]", "[/b] :smile:", 1.256)], "after [bold]3")
    printed = capsys.readouterr().out
    for text in ("prompt", "response", "score", "[red]a[/red]", "[/b] :smile:", "1.26", "after [bold]3"):
        assert text in printed


def test_markdown_sets_the_first_and_the_last_answers_side_by_side() -> None:
    samples = [
        Sample(0, "a", "first", 1.0),
        Sample(0, "b", "one", -2.5),
        Sample(5, "a", "between", 1.0),
        Sample(5, "b", "between", 1.0),
        Sample(10, "a", "last", 2.0),
        Sample(10, "b", "two", 0.0),
    ]
    assert as_markdown(samples) == (
        "| prompt | step 0 | step 10 |\n"
        "| --- | --- | --- |\n"
        "| a | first *(+1.00)* | last *(+2.00)* |\n"
        "| b | one *(-2.50)* | two *(+0.00)* |\n"
    )


def test_a_cell_keeps_its_lines_and_bars_inside_the_table() -> None:
    (row,) = as_markdown([Sample(0, "a|b", "c\nd|", 1.0)]).splitlines()[2:]
    assert row == "| a\\|b | c<br>d\\| *(+1.00)* | c<br>d\\| *(+1.00)* |"


def test_without_samples_markdown_says_so() -> None:
    assert as_markdown([]) == "No samples were asked for.\n"

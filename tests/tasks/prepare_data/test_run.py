"""The whole stage: files in, Parquet tables and a report out."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import read_split
from tasks.errors import InputError
from tasks.prepare_data.config import PrepareDataConfig
from tasks.prepare_data.run import main

RECORDS = [{"prompt": f"question {n}", "completion": f"answer, {n}", "note": "NA"} for n in range(40)]
Record = dict[str, Any]


def write_jsonl(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(output: Path, inputs: dict[str, Path] | None = None, **options: Any) -> Record:
    """Run the stage; returns its report. A source of a given input needs no path of its own."""
    inputs = inputs or {}
    for name, path in inputs.items():
        kind, test = name.removesuffix("_test"), name.endswith("_test")
        options.setdefault(kind, {})["test_path" if test else "path"] = str(path)
    output.mkdir(exist_ok=True)
    main(PrepareDataConfig.model_validate({"test_share": 0.2, **options}), inputs, output)
    return json.loads((output / "report.json").read_text())


def both(output: Path, kind: str) -> list[Record]:
    return read_split(output, kind, "train") + read_split(output, kind, "test")


def sources_of(records: list[Record], folder: Path) -> dict[str, Path]:
    """The same records in every format."""
    paths = {ending: folder / f"data.{ending}" for ending in ("json", "jsonl", "csv", "parquet")}
    paths["json"].write_text(json.dumps(records))
    write_jsonl(paths["jsonl"], records)
    with paths["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    pq.write_table(pa.Table.from_pylist(records), paths["parquet"])
    return paths


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    paths = sources_of([{**record, "prompt": str(n)} for n, record in enumerate(RECORDS)], tmp_path)
    tables = {}
    for ending, path in paths.items():
        run(tmp_path / f"out_{ending}", {"prompts": path})
        tables[ending] = [read_split(tmp_path / f"out_{ending}", "prompts", side) for side in ("train", "test")]
    expected = {(str(n), f"answer, {n}", "NA") for n in range(40)}
    assert {(r["prompt"], r["completion"], r["note"]) for part in tables["json"] for r in part} == expected
    assert len(tables) == 4
    assert all(table == tables["json"] for table in tables.values())


def test_a_mixed_json_array_keeps_its_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"prompt": 5, "completion": "x"}, *RECORDS]))
    report = run(tmp_path / "out", {"sft": path}, max_bad_share=0.1)
    assert {record["completion"] for record in both(tmp_path / "out", "sft")} == {f" answer, {n}" for n in range(40)}
    assert report["sft_rejected"] == {"prompt is of type int, not text or messages": 1}


def test_a_folder_is_read_whole_and_its_split_can_be_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", RECORDS[:20])
    write_jsonl(folder / "b.jsonl", RECORDS[20:])
    assert run(tmp_path / "out", {"sft": folder})["sft_read"] == 40
    write_jsonl(folder / "test-0.jsonl", RECORDS[:30])
    assert run(tmp_path / "out", {"sft": folder}, sft={"split": "test"})["sft_read"] == 30
    with pytest.raises(InputError, match=r"Should be one of \['test'\]"):
        run(tmp_path / "out", {"sft": folder}, sft={"split": "validation"})


def test_nothing_but_the_artifact_is_left_behind(tmp_path: Path) -> None:
    run(tmp_path / "out", {"sft": write_jsonl(tmp_path / "a.jsonl", RECORDS)})
    files = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    kinds = ["prompts_test", "prompts_train", "sft_test", "sft_train"]
    assert files == sorted(["report.json", *(f"{kind}.parquet" for kind in kinds)])


def test_columns_are_mapped_and_records_limited(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": r["prompt"], "a": r["completion"]} for r in RECORDS])
    source = {"columns": {"prompt": "q", "completion": "a"}, "max_records": 30, "separator": "\n"}
    run(tmp_path / "out", {"sft": path}, sft=source)
    records = both(tmp_path / "out", "sft")
    assert {r["prompt"]: r["completion"] for r in records} == {f"question {n}": f"\nanswer, {n}" for n in range(30)}


def test_conversations_stay_messages(tmp_path: Path) -> None:
    user = [{"role": "user", "content": f"u{n}"} for n in range(30)]
    dialogues = [{"messages": [turn, {"role": "assistant", "content": "yes"}]} for turn in user]
    pairs = [
        {
            "chosen": [turn, {"role": "assistant", "content": "yes"}],
            "rejected": [turn, {"role": "assistant", "content": "no"}],
        }
        for turn in user
    ]
    paths = {
        "sft": write_jsonl(tmp_path / "s.jsonl", dialogues),
        "preferences": write_jsonl(tmp_path / "p.jsonl", pairs),
    }
    run(tmp_path / "out", paths)
    answer = [{"role": "assistant", "content": "yes"}]
    assert all(r["completion"] == answer and len(r["prompt"]) == 1 for r in both(tmp_path / "out", "sft"))
    assert all(r["rejected"][0]["content"] == "no" for r in both(tmp_path / "out", "preferences"))
    prompts = {r["prompt"][0]["content"] for r in both(tmp_path / "out", "prompts")}
    assert prompts == {f"u{n}" for n in range(30)}


def test_a_conversation_among_plain_texts_is_not_used(tmp_path: Path) -> None:
    odd = {"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]}
    report = run(tmp_path / "out", {"sft": write_jsonl(tmp_path / "a.jsonl", [*RECORDS, odd])}, max_bad_share=0.1)
    assert report["sft_rejected"] == {"a conversation among plain texts": 1}


def test_duplicates_go_and_are_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*RECORDS, *RECORDS[:5], {**RECORDS[0], "completion": "another"}])
    report = run(tmp_path / "out", {"sft": path})
    assert report["sft_duplicates"] == 5
    assert report["sft_train_records"] + report["sft_test_records"] == 41
    prompts = [record["prompt"] for record in both(tmp_path / "out", "prompts")]
    assert len(prompts) == len(set(prompts)) == 40


def test_bad_records_are_counted_by_reason_and_the_first_shown(tmp_path: Path) -> None:
    bad = [{"prompt": "x", "completion": ""}] * 6 + [{"prompt": "y", "completion": None}]
    path = write_jsonl(tmp_path / "a.jsonl", [*RECORDS, *bad])
    report = run(tmp_path / "out", {"sft": path}, max_bad_share=0.2)
    assert report["sft_rejected"] == {"completion is empty": 6, "completion is missing": 1}
    assert len(report["sft_rejected_examples"]) == 5
    assert report["sft_rejected_examples"][0].startswith('record 41: completion is empty: {"prompt": "x"')
    with pytest.raises(
        InputError, match=r"(?s)7 of 47 records are unusable.*0\.1 allows.*6 x completion is empty.*record 41"
    ):
        run(tmp_path / "out", {"sft": path}, max_bad_share=0.1)


@settings(max_examples=10, deadline=None)
@given(prompts=st.lists(st.text("abcdef", min_size=1), min_size=30, max_size=60, unique=True), data=st.data())
def test_no_prompt_stands_on_both_sides_of_any_source(
    prompts: list[str], data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("split")
    shuffled = data.draw(st.permutations(prompts))
    paths = {
        "sft": write_jsonl(folder / "s.jsonl", [{"prompt": p, "completion": "x"} for p in prompts]),
        "preferences": write_jsonl(
            folder / "p.jsonl", [{"prompt": p, "chosen": "x", "rejected": "y"} for p in shuffled]
        ),
    }
    run(folder / "out", paths, test_share=0.5)
    train, test = (
        {
            r["prompt"].strip()
            for kind in ("sft", "preferences", "prompts")
            for r in read_split(folder / "out", kind, side)
        }
        for side in ("train", "test")
    )
    assert not train & test
    assert train | test == {prompt.strip() for prompt in prompts}


def test_a_grown_data_set_keeps_its_split(tmp_path: Path) -> None:
    run(tmp_path / "small", {"sft": write_jsonl(tmp_path / "a.jsonl", RECORDS[:30])})
    run(tmp_path / "large", {"sft": write_jsonl(tmp_path / "b.jsonl", RECORDS[::-1])})
    for side in ("train", "test"):
        small = {record["prompt"] for record in read_split(tmp_path / "small", "sft", side)}
        assert small < {record["prompt"] for record in read_split(tmp_path / "large", "sft", side)}


def test_explicit_test_files_are_kept_apart_and_their_overlap_is_counted(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", RECORDS[:30])
    test = write_jsonl(tmp_path / "b.jsonl", RECORDS[28:])
    report = run(tmp_path / "out", {"sft": train, "sft_test": test})
    assert (report["sft_train_records"], report["sft_test_records"]) == (30, 12)
    assert report["sft_test_prompts_also_in_train"] == 2


def test_lengths_are_reported_in_words_and_characters(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "w " * n} for n in range(1, 101)])
    test = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "w"}])
    report = run(tmp_path / "out", {"sft": train, "sft_test": test})
    assert report["sft_train_completion_words"] == {"p5": 5, "p50": 50, "p95": 95, "max": 100}
    assert report["sft_test_completion_characters"] == {"p5": 2, "p50": 2, "p95": 2, "max": 2}


def generated(count: int, first: int = 0) -> Iterator[Record]:
    """A source of records for the tests."""
    for number in range(first, first + count):
        yield {"prompt": f"p{number}", "answer": number if number < 1500 else str(number)}


def test_a_python_source_is_called_with_its_arguments(tmp_path: Path) -> None:
    source = {"path": f"python:{__name__}:generated", "arguments": {"count": 50, "first": 7}}
    run(tmp_path / "out", prompts=source)
    assert {r["prompt"]: r["answer"] for r in both(tmp_path / "out", "prompts")} == {f"p{n}": n for n in range(7, 57)}


def test_many_batches_are_written_once_each_and_in_order(tmp_path: Path) -> None:
    run(tmp_path / "out", prompts={"path": f"python:{__name__}:generated", "arguments": {"count": 1500}})
    answers = [record["answer"] for record in read_split(tmp_path / "out", "prompts", "train")]
    assert len(answers) > 1000
    assert answers == sorted(set(answers))
    assert sorted(record["answer"] for record in both(tmp_path / "out", "prompts")) == list(range(1500))


def test_share_and_salt_decide_what_is_held_out(tmp_path: Path) -> None:
    source = {"path": f"python:{__name__}:generated", "arguments": {"count": 1000}}
    held_out = {}
    for share, salt in ((0.1, "a"), (0.5, "a"), (0.5, "b")):
        run(tmp_path / "out", prompts=source, test_share=share, split_salt=salt)
        held_out[share, salt] = {record["prompt"] for record in read_split(tmp_path / "out", "prompts", "test")}
    assert 70 < len(held_out[0.1, "a"]) < 130
    assert 450 < len(held_out[0.5, "a"]) < 550
    assert held_out[0.1, "a"] < held_out[0.5, "a"] != held_out[0.5, "b"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "python:no_such:thing"}, "source 'no_such:thing': No module named 'no_such'"),
        ({"path": f"python:{__name__}:nothing"}, "has no attribute 'nothing'"),
        ({"path": f"python:{__name__}:RECORDS"}, "is a list, expected a function"),
        ({"path": f"python:{__name__}:generated"}, r"missing a required argument: 'count'.*signature is \(count"),
        ({"path": f"python:{__name__}:generated", "arguments": {"count": 4000}}, "values of different types"),
        ({"path": f"python:{__name__}:generated", "arguments": {"count": 0}}, "no record is left for the train part"),
    ],
)
def test_a_python_source_that_fails_says_why(source: Record, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", prompts=source)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "out", {"sft": tmp_path / "none.jsonl"})
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"holds notes\.txt; expected files ending in \.json"):
        run(tmp_path / "out", {"sft": tmp_path / "notes.txt"})
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{oops\n')
    with pytest.raises(InputError, match=r"broken\.jsonl cannot be read: .*in row 1"):
        run(tmp_path / "out", {"sft": tmp_path / "broken.jsonl"})
    (tmp_path / "latin.csv").write_bytes("prompt,completion\nna\u00efve,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv cannot be read: .*utf-8"):
        run(tmp_path / "out", {"sft": tmp_path / "latin.csv"})
    with pytest.raises(InputError, match="--input sft=PATH is missing"):
        main(PrepareDataConfig.model_validate({"sft": {"path": "s3://b/k.csv"}}), {}, tmp_path)


def test_a_missing_column_stops_before_anything_is_written(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(
        InputError, match=r"has the columns answer, question, but sft needs completion \+ prompt or messages"
    ):
        run(tmp_path / "out", {"sft": path})
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_an_empty_held_out_part_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", RECORDS[:3])
    with pytest.raises(InputError, match=r"no record is left for the test part .*3 read.*test_share 0\.0001"):
        run(tmp_path / "out", {"sft": path}, test_share=0.0001)


@pytest.mark.slow
def test_the_program_makes_the_demo_data_without_torch(tmp_path: Path) -> None:
    config = {"sft": {"path": "python:tasks.prepare_data.demo:sft_records", "arguments": {"num_records": 200}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import sys, runpy; runpy.run_module('tasks.prepare_data.run', run_name='__main__');"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert len(both(tmp_path / "out", "sft")) == 200

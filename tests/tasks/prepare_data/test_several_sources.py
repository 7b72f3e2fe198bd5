"""Several sources of one kind, the data sets' names, and records for the pretraining loss."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.data import read_split
from tasks.errors import InputError
from tasks.prepare_data.config import PrepareDataConfig
from tasks.prepare_data.run import main

Record = dict[str, Any]
MATHS = [{"prompt": f"{n} + {n} =", "answer": n + n} for n in range(40)]
TALK = [{"prompt": f"Tell me of {n}.", "tone": "kind"} for n in range(30)]


def write_jsonl(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def prepare(folder: Path, sources: dict[str, dict[str, Sequence[Record]]], **options: Any) -> Record:
    """Run the stage with sources given as kind -> data set's name -> records; returns its report."""
    groups: dict[str, list[Record]] = {
        kind: [
            {"path": str(write_jsonl(folder / f"{kind}_{name}.jsonl", records)), "name": name}
            for name, records in named.items()
        ]
        for kind, named in sources.items()
    }
    config = PrepareDataConfig.model_validate({"test_share": 0.2, **groups, **options})
    (folder / "out").mkdir()
    main(config, {name: Path(path) for name, path in config.sources().items()}, folder / "out")
    return json.loads((folder / "out" / "report.json").read_text())


def both(folder: Path, kind: str) -> list[Record]:
    return [record for split in ("train", "test") for record in read_split(folder / "out", kind, split)]


def test_prompts_of_several_sources_stand_in_one_table_each_with_its_data_sets_name(tmp_path: Path) -> None:
    report = prepare(tmp_path, {"prompts": {"maths": MATHS, "talk": TALK}})
    records = both(tmp_path, "prompts")
    assert Counter(record["source"] for record in records) == {"maths": 40, "talk": 30}
    assert {(r["prompt"], r["answer"], r["tone"]) for r in records} == {
        *((r["prompt"], r["answer"], None) for r in MATHS),
        *((r["prompt"], None, "kind") for r in TALK),
    }
    assert report["prompts_train_records"] + report["prompts_test_records"] == 70


def test_a_source_keeps_its_split_whatever_stands_beside_it(tmp_path: Path) -> None:
    held_out = []
    for number, sets in enumerate([{"maths": MATHS}, {"talk": TALK, "maths": MATHS}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare(folder, {"prompts": sets})
        test = read_split(folder / "out", "prompts", "test")
        held_out.append([record["prompt"] for record in test if record["source"] == "maths"])
    assert held_out[0] == held_out[1]
    assert held_out[0]


def test_the_report_counts_each_source_by_itself_and_all_together(tmp_path: Path) -> None:
    bad = [*TALK, {"prompt": ""}, TALK[0]]
    report = prepare(tmp_path, {"prompts": {"maths": MATHS, "talk": bad}}, max_bad_share=0.1)
    maths, talk = report["prompts_sources"]["maths"], report["prompts_sources"]["talk"]
    assert (maths["prompts_read"], talk["prompts_read"], report["prompts_read"]) == (40, 32, 72)
    assert (maths["prompts_duplicates"], talk["prompts_duplicates"], report["prompts_duplicates"]) == (0, 1, 1)
    assert maths["prompts_rejected"] == {}
    assert talk["prompts_rejected"] == report["prompts_rejected"] == {"prompt is empty": 1}
    assert talk["prompts_rejected_examples"] == report["prompts_rejected_examples"]
    for name in ("prompts_train_records", "prompts_test_records"):
        assert maths[name] + talk[name] == report[name]
    assert maths["prompts_train_prompt_words"]["max"] == 4
    assert report["prompts_train_prompt_words"] == {"p5": 4, "p50": 4, "p95": 4, "max": 4}


def test_lengths_of_several_sources_are_those_of_all_their_records(tmp_path: Path) -> None:
    sets = {"one": [{"text": "w v"}, {"text": "w"}], "two": [{"text": "w v u"}, {"text": "w v u t"}]}
    report = prepare(tmp_path, {"ptx": sets}, test_share=0.0001)
    assert report["ptx_train_completion_words"] == {"p5": 1, "p50": 2, "p95": 3, "max": 4}


def test_records_that_several_sources_share_are_kept_once_and_counted_where_they_come_again(tmp_path: Path) -> None:
    records = [{"prompt": f"p{n}", "completion": "yes"} for n in range(40)]
    report = prepare(tmp_path, {"sft": {"first": records, "second": [*records[:10], *records[:1], *extra("q")]}})
    assert report["sft_sources"]["second"]["sft_duplicates"] == 11
    assert len(both(tmp_path, "sft")) == 40 + 20
    assert "source" not in both(tmp_path, "sft")[0]


def extra(letter: str) -> list[Record]:
    return [{"prompt": f"{letter}{n}", "completion": "no"} for n in range(20)]


def test_prompts_that_are_lent_carry_the_lenders_name_and_come_once(tmp_path: Path) -> None:
    first = [{"prompt": f"p{n}", "chosen": "yes", "rejected": "no"} for n in range(30)]
    second = [{"prompt": f"p{n}", "chosen": "good", "rejected": "bad"} for n in range(20, 60)]
    prepare(tmp_path, {"preferences": {"first": first, "second": second}})
    names = {record["prompt"]: record["source"] for record in both(tmp_path, "prompts")}
    assert names == {f"p{n}": "first" if n < 30 else "second" for n in range(60)}
    assert len(both(tmp_path, "prompts")) == 60


def said(role: str, *contents: str) -> list[Record]:
    return [{"role": role, "content": content} for content in contents]


def test_lent_prompts_that_the_assistant_answered_are_left_out_and_counted(tmp_path: Path) -> None:
    answers = {"chosen": said("assistant", "yes"), "rejected": said("assistant", "no")}
    asked = [{"prompt": said("user", f"u{n}"), **answers} for n in range(30)]
    answered = {"prompt": [*said("user", "Hi"), *said("assistant", "Hello!")], **answers}
    report = prepare(tmp_path, {"preferences": {"talk": [*asked, answered]}})
    assert report["preferences_answered_prompts_not_lent"] == 1
    assert len(both(tmp_path, "preferences")) == 31
    assert sorted(r["prompt"][-1]["content"] for r in both(tmp_path, "prompts")) == sorted(f"u{n}" for n in range(30))


def test_prompts_with_answers_are_refused(tmp_path: Path) -> None:
    dialogue = [*said("user", "Hi"), *said("assistant", "Hello!")]
    with pytest.raises(InputError, match=r"30 x prompt ends with an assistant message, but PPO writes the answer"):
        prepare(tmp_path, {"prompts": {"talk": [{"prompt": dialogue, "id": n} for n in range(30)]}})


def test_a_source_of_conversations_beside_one_of_plain_texts_is_refused_naming_it(tmp_path: Path) -> None:
    dialogues = [{"prompt": said("user", str(n))} for n in range(30)]
    with pytest.raises(
        InputError, match=r"(?s)prompts from .*talk\.jsonl: 30 of 30 .*a conversation among plain texts"
    ):
        prepare(tmp_path, {"prompts": {"maths": MATHS, "talk": dialogues}})


def test_a_column_called_source_is_refused_with_another_name_for_it(tmp_path: Path) -> None:
    records = [{"prompt": f"p{n}", "source": "web"} for n in range(40)]
    with pytest.raises(InputError, match=r"has a column `source`.*prompts\.columns: \{origin: source\}"):
        prepare(tmp_path, {"prompts": {"a": records}})
    path = str(tmp_path / "prompts_a.jsonl")
    config = PrepareDataConfig.model_validate({"prompts": {"path": path, "columns": {"origin": "source"}}})
    main(config, {"prompts": Path(path)}, tmp_path / "out")
    assert {(record["source"], record["origin"]) for record in both(tmp_path, "prompts")} == {("prompts_a", "web")}


def test_a_column_of_two_types_in_two_sources_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    words = [{"prompt": f"w{n}", "answer": "two"} for n in range(30)]
    with pytest.raises(InputError, match=r"prompts_train\.parquet: a column has different types.*answer"):
        prepare(tmp_path, {"prompts": {"maths": MATHS, "words": words}})
    fractions = [{"prompt": f"w{n}", "answer": n / 2} for n in range(30)]
    (tmp_path / "out").rename(tmp_path / "before")
    prepare(tmp_path, {"prompts": {"maths": MATHS, "fractions": fractions}})
    assert {record["answer"] for record in both(tmp_path, "prompts")} >= {0.5, 78.0}


def test_a_source_that_leaves_nothing_to_train_on_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no record is left for the train part of \S+prompts_empty\.jsonl \(40 read, 40"
    ):
        prepare(tmp_path, {"prompts": {"maths": MATHS, "empty": MATHS}})


def test_ptx_takes_demonstrations_dialogues_and_plain_texts(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{n}", "completion": "a"} for n in range(20)]
    texts = [{"text": f" Once upon a time {n}", "id": n} for n in range(20)]
    prepare(tmp_path, {"ptx": {"pairs": pairs, "texts": texts}, "prompts": {"maths": MATHS}})
    records = {(r["prompt"], r["completion"], r["source"]) for r in both(tmp_path, "ptx")}
    assert records == {
        *((f"q{n}", " a", "pairs") for n in range(20)),
        *(("", f" Once upon a time {n}", "texts") for n in range(20)),
    }
    held_out = [r for r in read_split(tmp_path / "out", "ptx", "test") if r["source"] == "texts"]
    assert 0 < len(held_out) < 20


def test_ptx_needs_nothing_held_out_and_lends_no_prompts(tmp_path: Path) -> None:
    prepare(tmp_path, {"ptx": {"texts": [{"text": f"t{n}"} for n in range(3)]}}, test_share=0.0001)
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["ptx_train.parquet"]


def test_a_prompt_held_out_elsewhere_is_held_out_of_ptx_too(tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{n}", "completion": "a"} for n in range(60)]
    prepare(tmp_path, {"sft": {"a": pairs}, "ptx": {"b": pairs}})
    sides = [{r["prompt"] for r in read_split(tmp_path / "out", kind, "test")} for kind in ("sft", "ptx")]
    assert sides[0] == sides[1]


def test_no_record_of_any_source_is_lost(tmp_path: Path) -> None:
    sets = {f"s{size}": [{"prompt": f"{size} {n}"} for n in range(size)] for size in (2500, 1, 1000, 40)}
    prepare(tmp_path, {"prompts": sets}, test_share=0.3)
    found = Counter(record["source"] for record in both(tmp_path, "prompts"))
    assert found == {"s2500": 2500, "s1": 1, "s1000": 1000, "s40": 40}

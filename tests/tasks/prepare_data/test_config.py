"""What the configuration accepts, and what it asks to be fetched."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.prepare_data.config import PrepareDataConfig

PYTHON = {"path": "python:tasks.prepare_data.demo:sft_records", "arguments": {"seed": 1}}


def test_every_outside_path_is_listed_under_its_input_name() -> None:
    config = PrepareDataConfig.model_validate(
        {
            "sft": {"path": "s3://b/a.jsonl"},
            "preferences": {"path": "hf://o/n", "test_path": "t.csv"},
            "prompts": PYTHON,
        }
    )
    assert config.sources() == {"sft": "s3://b/a.jsonl", "preferences": "hf://o/n", "preferences_test": "t.csv"}


def test_each_of_several_sources_has_an_input_of_its_own() -> None:
    several = [{"path": "a/maths.jsonl", "test_path": "t.csv"}, {"path": "b/maths.csv", "name": "more"}, PYTHON]
    config = PrepareDataConfig.model_validate({"prompts": several, "sft": [{"path": "s.json"}]})
    assert config.sources() == {
        "sft": "s.json",
        "prompts.maths": "a/maths.jsonl",
        "prompts_test.maths": "t.csv",
        "prompts.more": "b/maths.csv",
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/maths.JSONL", "maths"),
        ("folder/v1.2/", "v1.2"),
        ("s3://bucket/key.parquet", "key"),
        ("hf://openai/gsm8k@main", "gsm8k"),
        ("trl-lib/Capybara", "Capybara"),
        ("python:package.module:records", "records"),
        ("some words.csv", "some_words"),
    ],
)
def test_a_data_set_is_called_what_its_path_ends_in(path: str, name: str) -> None:
    assert PrepareDataConfig.model_validate({"prompts": {"path": path}}).given()["prompts"][0].data_set == name


@pytest.mark.parametrize(
    ("given", "lender"),
    [
        (("sft",), "sft"),
        (("sft", "preferences"), "preferences"),
        (("sft", "preferences", "prompts"), None),
        (("ptx",), None),
    ],
)
def test_prompts_are_lent_by_the_preferences_else_by_the_demonstrations(given: tuple[str], lender: str | None) -> None:
    assert PrepareDataConfig.model_validate({name: {"path": "f.csv"} for name in given}).prompts_lender == lender


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no source is given; set at least one of sft, preferences, prompts"),
        ({"sft": {"path": "f.csv", "arguments": {"seed": 1}}}, "arguments are for python: sources, but path is f.csv"),
        ({"sft": {**PYTHON, "test_path": "t.csv"}}, "test_path cannot be used with the python: source"),
        ({"sft": {"path": "python:module"}}, "write python:package.module:function"),
        ({"sft": {"path": "f.csv", "columns": {"question": "prompt"}}}, "sft.columns names question, but our columns"),
        ({"sft": {"path": "f.csv"}, "test_share": 0}, "greater than 0"),
        ({"sft": {"path": "f.csv", "colums": {}}}, "Extra inputs are not permitted"),
        (
            {"ptx": {"path": "f.csv", "columns": {"texts": "t"}}},
            "ptx.columns names texts, but our columns are completion",
        ),
        ({"prompts": {"path": "f.csv", "columns": {"source": "web"}}}, "makes a column `source`, which holds the data"),
        ({"prompts": []}, "at least 1 item"),
        ({"prompts": {"path": "f.csv", "name": "two words"}}, "should match pattern"),
        (
            {"sft": [{"path": "a/x.csv"}, {"path": "b/x.json"}]},
            "two sources of sft are called x: a/x.csv and b/x.json. Give one of them another name",
        ),
    ],
)
def test_a_wrong_option_says_what_to_write(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepareDataConfig.model_validate(options)

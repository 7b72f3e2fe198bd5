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


@pytest.mark.parametrize(
    ("given", "lender"),
    [(("sft",), "sft"), (("sft", "preferences"), "preferences"), (("sft", "preferences", "prompts"), None)],
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
    ],
)
def test_a_wrong_option_says_what_to_write(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepareDataConfig.model_validate(options)

import json
from pathlib import Path

import pytest

from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.prompt_files import read_prompt_file

TALK = [{"role": "user", "content": "Hello?"}]


@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        ("a.txt", "one\n\n two \n", [{"prompt": "one"}, {"prompt": "two"}]),
        ("a.json", json.dumps(["one", TALK]), [{"prompt": "one"}, {"prompt": TALK}]),
        (
            "a.jsonl",
            f'{{"prompt": "one", "answer": "1"}}\n{json.dumps(TALK)}\n',
            [{"prompt": "one", "answer": "1"}, {"prompt": TALK}],
        ),
    ],
)
def test_every_form_gives_its_prompts(tmp_path: Path, name: str, content: str, records: list[dict]) -> None:
    (tmp_path / name).write_text(content)
    assert read_prompt_file(tmp_path / name) == records


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.txt", "\n", "at least one"),
        ("a.json", "{}", "holds no list"),
        ("a.json", "[", "is not JSON"),
        ("a.jsonl", '"one"\n{\n', "line 2 is not JSON"),
        ("a.jsonl", '"one"\n7\n', "prompt 2 is 7"),
        ("a.json", '[[{"role": "user"}]]', "messages with role and content"),
    ],
)
def test_what_holds_no_prompts_is_refused_with_the_place(tmp_path: Path, name: str, content: str, fault: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=fault):
        read_prompt_file(tmp_path / name)


def test_a_config_keeps_the_canaries_of_a_file_and_not_its_path(tmp_path: Path) -> None:
    path = tmp_path / "canaries.txt"
    path.write_text("one\ntwo\n")
    config = EvaluateConfig(canaries=str(path))
    path.unlink()
    assert config.canaries == ["one", "two"]
    assert EvaluateConfig.model_validate_json(config.model_dump_json()) == config


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        EvaluateConfig(canaries=str(tmp_path / "none.txt"))

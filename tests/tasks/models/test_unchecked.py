"""What failed leaves no model behind, and an older one goes only when the new one is complete."""

import pytest

from tasks.models.unchecked import UNCHECKED, unchecked


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_the_files_come_into_the_folder_at_the_end(tmp_path):
    with unchecked(tmp_path / "output") as aside:
        (aside / "config.json").write_text("{}")
        (aside / "model.safetensors").write_text("w")
        assert names_in(tmp_path / "output") == {UNCHECKED}
    assert names_in(tmp_path / "output") == {"config.json", "model.safetensors"}


def test_a_failure_leaves_nothing_and_the_older_model_as_it_was(tmp_path):
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "model.safetensors").write_text("old")
    with pytest.raises(FileNotFoundError), unchecked(tmp_path) as aside:
        (aside / "config.json").write_bytes((aside / "absent").read_bytes())
    assert names_in(tmp_path) == {"config.json", "model.safetensors"}
    assert (tmp_path / "config.json").read_text() == "old"


def test_the_weights_of_an_older_model_do_not_stay_beside_the_new(tmp_path):
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_text("old")
    with unchecked(tmp_path) as aside:
        (aside / "config.json").write_text("new")
        (aside / "model.safetensors").write_text("new")
    assert names_in(tmp_path) == {"config.json", "model.safetensors", "metrics.jsonl"}


def test_what_makes_it_a_model_is_moved_last(tmp_path, monkeypatch):
    moved = []
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda path, to: moved.append(path.name) or replace(path, to))
    with unchecked(tmp_path) as aside:
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
            (aside / name).write_text(name)
    assert moved[-1] == "adapter_config.json"
    assert len(moved) == 3


def test_what_an_interrupted_attempt_left_does_not_come_in(tmp_path):
    (tmp_path / UNCHECKED).mkdir()
    (tmp_path / UNCHECKED / "half.safetensors").write_text("half")
    with unchecked(tmp_path) as aside:
        (aside / "config.json").write_text("{}")
    assert names_in(tmp_path) == {"config.json"}

"""What exists already: how it is found, what it is taken for, and what a user hears who misspelt it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.artifacts import Artifact, import_external
from tasks.errors import InputError
from tasks.storage import externals

COMMIT = "c" * 40


def folder_of(tmp_path: Path, *names: str, architecture: str = "LlamaForCausalLM") -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(json.dumps({"architectures": [architecture]}))
    return folder


def path_of(artifact: Artifact, cache: Path) -> Path:
    with externals.fetched(artifact, cache) as path:
        return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["config.json", "model.safetensors"], "model"),
        (["config.json", "model.safetensors", "scalar_head.json"], "reward_model"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["adapter_config.json", "adapter_model.safetensors", "scalar_head.json"], "reward_adapter"),
        (["actor_critic.json", "config.json", "model.safetensors"], "actor_critic"),
        (["actor_critic.json", "config.json", "model.safetensors", "adapter_config.json"], "actor_critic_adapter"),
        (["sft_train.parquet", "report.json"], "data"),
        (["evaluation.json", "report.md"], "evaluation"),
        (["reviews.jsonl"], "file"),
    ],
)
def test_a_folder_is_what_its_files_say(names: list[str], kind: str, tmp_path: Path) -> None:
    assert import_external(str(folder_of(tmp_path, *names))).kind == kind


def test_a_sequence_classifier_is_a_reward_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "config.json", architecture="GPT2ForSequenceClassification")
    assert import_external(str(folder)).kind == "reward_model"
    assert import_external(str(folder), kind="model").kind == "model"


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "config.json")
    (folder / "config.json").write_text("not json")
    with pytest.raises(InputError, match=r"config\.json is no model's configuration"):
        import_external(str(folder))


def test_local_things_are_used_where_they_lie_and_known_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my prompts.jsonl"
    file.write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    artifact = import_external("my prompts.jsonl")
    assert (artifact.kind, artifact.size_bytes) == ("file", 3)
    assert path_of(artifact, tmp_path / "cache") == file
    assert import_external(artifact.uri) == artifact
    file.write_text("{ }")
    assert import_external(str(file)).digest != artifact.digest


@pytest.mark.parametrize("source", ["absent.jsonl", "data/absent.jsonl", "./a/b/c"])
def test_a_missing_file_is_named_by_its_absolute_path(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"there is no {tmp_path}/{source.removeprefix('./')}"):
        import_external(source)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        import_external(str(folder_of(tmp_path)))


def test_what_went_away_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "reviews.jsonl")
    artifact = import_external(str(folder))
    folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=f"{folder} is gone"):
        path_of(artifact, tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, list[str]]]:
    """A hub that knows the model org/name, and what it was asked for: repository, revision, file patterns."""
    asked: list[tuple[str, str | None, list[str]]] = []
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (snapshot / "model.safetensors").touch()

    def give(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
        asked.append((repository, revision, list(patterns)))
        if repository.removeprefix("datasets/") != "org/name":
            raise OSError("404 Client Error.\nRepository Not Found")
        return snapshot

    monkeypatch.setattr(externals, "_snapshot", give)
    return asked


@pytest.mark.parametrize(
    ("source", "revision"), [("org/name", None), ("hf://org/name", None), ("hf://org/name@main", "main")]
)
def test_a_hub_name_is_resolved_to_a_commit(
    source: str, revision: str | None, hub: list[tuple[str, str | None, list[str]]], tmp_path: Path
) -> None:
    artifact = import_external(source)
    assert (artifact.uri, artifact.kind) == (f"hf://org/name@{COMMIT}", "model")
    assert path_of(artifact, tmp_path).name == COMMIT
    assert [(repository, asked) for repository, asked, _ in hub] == [("org/name", revision), ("org/name", COMMIT)]
    assert "*.safetensors" in hub[1][2]
    assert not {"*", "*.bin", "*.pt"} & set(hub[1][2])


def test_a_hub_name_for_data_is_a_data_set(hub: list[tuple[str, str | None, list[str]]], tmp_path: Path) -> None:
    artifact = import_external("org/name", kind="file")
    assert artifact.uri == f"hf://datasets/org/name@{COMMIT}"
    path_of(artifact, tmp_path)
    assert hub[1] == ("datasets/org/name", COMMIT, ["*.json", "*.jsonl", "*.csv", "*.parquet"])


def test_a_name_that_is_nowhere_names_both_places_tried(
    hub: list[tuple[str, str | None, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"no {tmp_path}/org/nmae, and the hub gives no such model .404 Client Error"):
        import_external("org/nmae")


def test_a_hub_model_without_safetensors_is_refused(
    hub: list[tuple[str, str | None, list[str]]], tmp_path: Path
) -> None:
    artifact = import_external("org/name")
    (tmp_path / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        path_of(artifact, tmp_path)


def test_the_hub_is_asked_for_the_repository_of_that_type(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(name: str, *, repo_type: str, **_: object) -> str:
        asked.append((name, repo_type))
        return f"/hub/{COMMIT}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    import_external("org/name", kind="model")
    import_external("org/name", kind="file")
    assert asked == [("org/name", "model"), ("org/name", "dataset")]

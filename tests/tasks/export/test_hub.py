"""Pushing an export, to a stand-in of the hub."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.errors import InputError
from tasks.export import hub, run
from tasks.export.__main__ import main
from tasks.export.config import ExportConfig, HubForm
from tests import hub_server
from tests.tasks.evaluate import tiny_chain

IDS = torch.tensor([[2, 4, 8, 7, 3]])
REPOSITORY = "org/model"


@pytest.fixture
def there(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the stand-in speaks Git LFS
    with hub_server.hub() as server:
        yield server


def inputs_in(tmp_path, seed=0):
    return {"model": tiny_chain.write_model(tmp_path / f"model-{seed}", seed=seed)}


def config_for(server, **options):
    return ExportConfig(hub=HubForm(repository=REPOSITORY, endpoint=server.url), **options)


def test_what_users_get_is_the_export_after_it_was_fetched_and_tried(there, tmp_path):
    run.main(config_for(there, modelfile=True), inputs_in(tmp_path), tmp_path / "output")

    repository = there.repositories[REPOSITORY]
    sent = {path.name: path.read_bytes() for path in (tmp_path / "output").iterdir()}
    unsent = {"metrics.jsonl", "hub.json"}
    assert repository.private
    assert repository.at("main")[1] == {".gitattributes": b""} | {n: d for n, d in sent.items() if n not in unsent}
    fetched = [request for request in there.requests if request.startswith("GET") and "model.safetensors" in request]
    assert len(fetched) == 1
    assert there.requests.index(fetched[0]) < there.requests.index("POST /api/models/org/model/discussions/1/merge")
    record = json.loads(sent["hub.json"])
    assert (record["repository"], record["commit"]) == (REPOSITORY, repository.refs["main"])


def test_a_second_push_takes_the_place_of_the_first_weights(there, tmp_path):
    run.main(config_for(there, max_shard_size="2KB"), inputs_in(tmp_path), tmp_path / "first")
    shards = [name for name in there.repositories[REPOSITORY].at("main")[1] if name.startswith("model-")]
    run.main(config_for(there), inputs_in(tmp_path, seed=1), tmp_path / "second")

    names = set(there.repositories[REPOSITORY].at("main")[1])
    assert len(shards) > 1
    assert "model.safetensors" in names
    assert not names & {*shards, "model.safetensors.index.json"}


@pytest.mark.parametrize("file", ["model.safetensors", "README.md"])
def test_what_comes_back_otherwise_is_not_merged(there, tmp_path, file):
    run.main(config_for(there), inputs_in(tmp_path), tmp_path / "first")
    before = there.repositories[REPOSITORY].refs["main"]
    there.spoil = file

    with pytest.raises(OSError, match=f"other bits than were sent: {file}"):
        run.main(config_for(there), inputs_in(tmp_path, seed=1), tmp_path / "second")

    assert there.repositories[REPOSITORY].refs["main"] == before
    assert (tmp_path / "second" / "config.json").is_file()  # the export itself is whole
    assert not (tmp_path / "second" / "hub.json").exists()


def test_a_token_that_may_not_write_is_refused(there, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")

    with pytest.raises(InputError, match=r"refuses org/model .*\$HF_TOKEN may write"):
        run.main(config_for(there), inputs_in(tmp_path), tmp_path / "output")


def test_without_a_token_in_the_environment_nothing_begins(there, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")

    with pytest.raises(InputError, match=r"\$HF_TOKEN is not set"):
        run.main(config_for(there), inputs_in(tmp_path), tmp_path / "output")
    assert there.requests == []
    assert not (tmp_path / "output").exists()


def test_by_hand_the_export_stands_even_where_the_push_fails(there, tmp_path, capsys):
    (tmp_path / "options.json").write_text(json.dumps({"hub": {"repository": "x/y", "endpoint": there.url}}))
    model = inputs_in(tmp_path)["model"]
    words = [str(model), "--output", str(tmp_path / "out"), "--config", str(tmp_path / "options.json"), "--push"]

    assert main([*words, REPOSITORY]) == 0
    assert set(there.repositories) == {REPOSITORY}
    with torch.no_grad():
        one, other = (AutoModelForCausalLM.from_pretrained(folder)(IDS).logits for folder in (tmp_path / "out", model))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["model", "a/b/c", "-/x"])
def test_a_repository_is_an_organisation_and_a_name(name):
    with pytest.raises(ValueError, match="repository"):
        HubForm(repository=name)


def test_only_the_environment_is_asked_for_the_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("hf_on_disk")

    with pytest.raises(InputError, match="is not set"):
        hub.read_token()

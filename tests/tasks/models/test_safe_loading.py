"""Pickles and code planted among a model's files are refused or ignored: what they would do is never done."""

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tasks.actor_critic.folder import load_actor_critic, save_actor_critic
from tasks.artifacts import fetch, import_external, publish, store_at
from tasks.checkpoints import newest_checkpoint, read_state, read_tensors, save_checkpoint
from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.hf_trainer import CHECKPOINTS
from tasks.models.adapters import add_lora, load_adapter, save_adapter
from tasks.models.modeling import (
    ScalarHead,
    load_causal_lm,
    load_classifier,
    load_scalar_head,
    load_tokenizer,
    save_scalar_head,
)
from tasks.prepare_data.config import SourceConfig
from tasks.prepare_data.sources import read_source
from tasks.remove_value_head.run import load_policy
from tasks.remove_value_head.source import read_source as read_policy_source
from tests.tasks.sft.test_train import run as run_sft
from tests.tasks.tiny_models import make_model, make_tokenizer, write_model

pytestmark = pytest.mark.slow

PICKLES = ("pytorch_model.bin", "adapter_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "rng_state.pth")
CODE = "import os\nos.mkdir({marker!r})\n"


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


def plant(folder: Path, marker: Path) -> Path:
    for number, name in enumerate(PICKLES):
        if number % 2:
            torch.save({"weight": Trap(marker)}, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    return folder


def without_safetensors(folder: Path) -> Path:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return folder


def write_adapter(folder: Path) -> Path:
    save_adapter(folder, add_lora(make_model(), LoraConfig(r=2), ["x"]), "x", make_tokenizer())
    return folder


def write_actor_critic(folder: Path) -> Path:
    save_actor_critic(folder, make_model(), {"head.weight": torch.ones(1, 16)}, make_tokenizer())
    return folder


def write_head(folder: Path) -> Path:
    folder.mkdir()
    save_scalar_head(folder, ScalarHead(16))
    return folder


LOADERS: list[tuple[Callable[[Path], Path], Callable[[Path], Any]]] = [
    (write_model, load_causal_lm),
    (write_model, load_classifier),
    (write_adapter, lambda folder: load_adapter(make_model(), folder, "x")),
    (write_actor_critic, load_actor_critic),
    (write_head, load_scalar_head),
]


@pytest.mark.parametrize("name", PICKLES)
def test_the_traps_work(name: str, tmp_path: Path, marker: Path) -> None:
    path = plant(tmp_path, marker) / name
    with contextlib.suppress(RuntimeError):  # what comes out of a plain pickle is no archive of torch's
        torch.load(path, weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize(("write", "load"), LOADERS)
def test_pickles_beside_safetensors_are_ignored(
    write: Callable[[Path], Path], load: Callable[[Path], Any], tmp_path: Path, marker: Path
) -> None:
    load(plant(write(tmp_path / "folder"), marker))
    assert not marker.exists()


@pytest.mark.parametrize(("write", "load"), LOADERS)
def test_weights_that_only_pickles_hold_are_refused(
    write: Callable[[Path], Path], load: Callable[[Path], Any], tmp_path: Path, marker: Path
) -> None:
    folder = plant(without_safetensors(write(tmp_path / "folder")), marker)
    with pytest.raises(InputError, match=r"no \*\.safetensors file but adapter_model\.bin, .* never loaded"):
        load(folder)
    assert not marker.exists()


@pytest.mark.parametrize(("write", "load"), LOADERS)
def test_missing_weights_are_named(write: Callable[[Path], Path], load: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder has no .*safetensors, and no other weights"):
        load(without_safetensors(write(tmp_path / "folder")))


@pytest.mark.parametrize("write", [write_model, write_adapter, write_actor_critic])
def test_a_run_refuses_pickled_weights_before_it_starts(
    write: Callable[[Path], Path], tmp_path: Path, marker: Path
) -> None:
    folder = plant(without_safetensors(write(tmp_path / "folder")), marker)
    with pytest.raises(InputError, match="never loaded"):
        import_external(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/elsewhere.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(shard: str, tmp_path: Path, marker: Path) -> None:
    folder = plant(write_model(tmp_path / "model"), marker)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json names .* where a \*\.safetensors file beside it is due"):
        load_causal_lm(folder)
    assert not marker.exists()


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="is no index of shards"):
        load_causal_lm(folder)


def test_pickles_in_an_artifact_are_ignored(tmp_path: Path, marker: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    folder = plant(write_model(tmp_path / "model"), marker)
    artifact = publish(store, folder, stage="sft", key="0" * 32, kind="model", config={}, inputs={})
    fetched = fetch(store, artifact, tmp_path / "cache")
    assert (fetched / "pytorch_model.bin").is_file()
    load_causal_lm(fetched)
    load_tokenizer(fetched)
    assert not marker.exists()


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_trainers_checkpoint_holds_no_pickle_and_one_that_does_is_refused(
    lora: dict[str, int] | None, tmp_path: Path, marker: Path
) -> None:
    options = {"max_steps": 2, "save_steps": 1, "lora": lora}
    checkpoint = run_sft(tmp_path, **options) / CHECKPOINTS / "checkpoint-2"
    endings = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert endings <= {".safetensors", ".json", ".md"}
    assert (checkpoint / "optimizer.safetensors").is_file()
    plant(checkpoint, marker)
    with pytest.raises(InputError, match=r"checkpoint-2 holds adapter_model\.bin, .*optimizer\.pt.* never loaded"):
        run_sft(tmp_path, **options)
    assert not marker.exists()


def test_pickles_in_a_checkpoint_of_ppo_are_ignored(tmp_path: Path, marker: Path) -> None:
    save_checkpoint(tmp_path, 1, {"weight": torch.ones(2)}, {"iteration": 1}, [])
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    plant(checkpoint, marker)
    assert (read_state(checkpoint), read_tensors(checkpoint)["weight"].tolist()) == ({"iteration": 1}, [1.0, 1.0])
    assert not marker.exists()


def test_pickled_records_are_no_data(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "records.pkl").write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(InputError, match=r"holds records\.pkl; expected files ending in"):
        list(read_source(SourceConfig(path=str(folder)), folder, tmp_path / "cache"))
    (folder / "records.jsonl").write_text('{"prompt": "a"}\n')
    assert list(read_source(SourceConfig(path=str(folder)), folder, tmp_path / "cache")) == [{"prompt": "a"}]
    assert not marker.exists()


def write_custom_model(folder: Path, marker: Path, model_type: str) -> Path:
    """A model that says that its classes are in model.py beside it."""
    write_model(folder)
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_json(folder / "config.json", model_type=model_type, auto_map=classes)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("load", [load_causal_lm, load_classifier, load_tokenizer])
def test_a_model_that_needs_its_own_code_is_refused(load: Callable[[Path], Any], tmp_path: Path, marker: Path) -> None:
    folder = write_custom_model(tmp_path / "model", marker, "of_its_own")
    with pytest.raises(InputError, match=r"model needs code of its own .*never run"):
        load(folder)
    assert not marker.exists()


def test_a_policy_that_needs_its_own_code_is_refused(tmp_path: Path, marker: Path) -> None:
    folder = write_custom_model(tmp_path / "model", marker, "of_its_own")
    source = read_policy_source(write_actor_critic(tmp_path / "saved"), None)
    with pytest.raises(InputError, match="needs code of its own"):
        load_policy(dataclasses.replace(source, config_folder=folder), None)
    assert not marker.exists()


def test_a_tokenizer_that_needs_its_own_code_is_refused(tmp_path: Path, marker: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    changes = {"tokenizer_class": "OfItsOwn", "auto_map": {"AutoTokenizer": ["code.Slow", "code.Fast"]}}
    change_json(folder / "tokenizer_config.json", **changes)
    with pytest.raises(InputError, match="needs code of its own"):
        load_tokenizer(folder)
    assert not marker.exists()


def test_the_librarys_own_code_is_preferred_to_the_models(tmp_path: Path, marker: Path) -> None:
    folder = write_custom_model(tmp_path / "model", marker, "llama")
    assert type(load_causal_lm(folder)) is type(make_model())
    load_tokenizer(folder)
    assert not marker.exists()


def test_the_code_of_the_model_would_run_if_it_were_trusted(tmp_path: Path, marker: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Slow", "code.Fast"]})
    with pytest.raises(AttributeError):
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert marker.is_dir()
    shutil.rmtree(marker)
    load_tokenizer(folder)
    assert not marker.exists()

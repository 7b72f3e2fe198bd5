"""Weights on disk, tensor by tensor."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.models import shards
from tasks.models.shards import main_dtype, same_bits, weights_in, write_shards
from tests.tasks.tiny_models import make_model

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 4),
}


def outlines(tensors):
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}


@pytest.mark.parametrize(("size", "num_files"), [("1GB", 1), (8, 3)])
def test_what_is_written_is_what_is_read(tmp_path, size, num_files):
    write_shards(tmp_path, outlines(TENSORS), TENSORS.__getitem__, size, "model")
    assert len(list(tmp_path.glob("*.safetensors"))) == num_files
    found = weights_in(tmp_path, "model")
    assert found.keys() == TENSORS.keys()
    assert all(same_bits(found[name].read(), tensor) for name, tensor in TENSORS.items())
    assert [found[name].shape for name in "abcd"] == [(2, 3), (2,), (), (0, 4)]
    assert found["b"].dtype == torch.bfloat16
    assert found["a"].size_bytes == 24


def test_transformers_reads_what_is_written_and_the_other_way_round(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    found = weights_in(tmp_path, "model")
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in model.state_dict().items())
    (tmp_path / "again").mkdir()
    write_shards(tmp_path / "again", outlines(model.state_dict()), model.state_dict().__getitem__, "3KB", "model")
    model.config.save_pretrained(tmp_path / "again")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_one_shard_is_made_at_a_time(tmp_path):
    tensors = {f"t{number}": torch.full((64,), float(number)) for number in range(6)}
    there = []

    def make(name):
        there.append(len(list(tmp_path.glob("*.safetensors"))))
        return tensors[name]

    write_shards(tmp_path, outlines(tensors), make, 512, "model")
    assert there == [0, 0, 1, 1, 2, 2]


def test_a_disk_that_gives_back_other_bits_is_an_error(tmp_path, monkeypatch):
    def save_damaged(tensors, path, metadata):
        save_file(tensors | {"a": tensors["a"] + 1}, path, metadata)

    monkeypatch.setattr(shards, "save_file", save_damaged)
    with pytest.raises(OSError, match=r"other bits than were written: a\."):
        write_shards(tmp_path, outlines(TENSORS), TENSORS.__getitem__, "1GB", "model")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([float("nan")], [float("nan")], True),
        ([0.0], [-0.0], False),
        ([1.0], [[1.0]], False),
        ([], [], True),
    ],
)
def test_bits_are_compared_and_not_numbers(one, other, same):
    assert same_bits(torch.tensor(one), torch.tensor(other)) is same


def test_types_count_as_well():
    assert not same_bits(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16))


def test_the_precision_is_that_of_most_numbers(tmp_path):
    save_file(
        {"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(4), "c": torch.zeros(99).long()},
        tmp_path / "model.safetensors",
    )
    assert main_dtype(weights_in(tmp_path, "model")) == torch.bfloat16


def test_an_index_names_every_tensors_file(tmp_path):
    write_shards(tmp_path, outlines(TENSORS), TENSORS.__getitem__, 8, "model")
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map.keys() == TENSORS.keys()
    assert all(name in load_file(tmp_path / file) for name, file in weight_map.items())

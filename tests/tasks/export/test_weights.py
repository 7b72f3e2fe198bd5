import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import InputError
from tasks.export.weights import copy_weights, own_dtype, read_weights

TENSORS = {
    "wide": torch.arange(1024, dtype=torch.float32).reshape(32, 32) / 3,
    "half": torch.arange(8, dtype=torch.bfloat16) / 3,
    "whole": torch.arange(4),
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_as_they_are_tensors_keep_type_and_bits(source, tmp_path):
    copy_weights(tmp_path, read_weights(source), None, "5GB")

    copied = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in copied.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert all(torch.equal(copied[name], tensor) for name, tensor in TENSORS.items())


def test_another_precision_is_in_the_file_and_leaves_integers_alone(source, tmp_path):
    copy_weights(tmp_path, read_weights(source), torch.float16, "5GB")

    copied = load_file(tmp_path / "model.safetensors")
    assert [copied[name].dtype for name in TENSORS] == [torch.float16, torch.float16, torch.int64]
    assert torch.equal(copied["wide"], TENSORS["wide"].half())


def test_a_shard_holds_what_was_chosen(source, tmp_path):
    copy_weights(tmp_path, read_weights(source), None, "4KB")

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["wide"] != index["half"]


def test_the_precision_is_the_configs_else_that_of_most_weights(source):
    assert own_dtype(source) == "float32"
    (source / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert own_dtype(source) == "bfloat16"


def test_a_folder_without_weights_is_refused(source):
    (source / "model.safetensors").unlink()

    with pytest.raises(InputError, match=r"expected model\.safetensors"):
        read_weights(source)

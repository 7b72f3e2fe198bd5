"""Merging an adapter: equal to the two it came from, or nothing."""

import json

import pytest
import torch

from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.merge_lora.config import MergeLoraConfig
from tasks.merge_lora.run import main
from tasks.models.adapters import add_lora, save_adapter
from tasks.models.logits import ModelsDiffer
from tasks.models.model_files import kind_of
from tasks.models.modeling import load_causal_lm, save_model
from tests.tasks.tiny_models import make_model, make_tokenizer, write_model

pytestmark = pytest.mark.slow

IDS = torch.tensor([[3, 5, 7, 9]])


def write_adapter_folder(folder):
    torch.manual_seed(2)
    model = add_lora(make_model(), LoraConfig(r=2), ["x"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_adapter(folder, model, "x", make_tokenizer())
    return model


def inputs_in(tmp_path, base=None):
    base = base or write_model(tmp_path / "base")
    unmerged = write_adapter_folder(tmp_path / "adapter")
    return {"model": base, "adapter": tmp_path / "adapter"}, unmerged


def test_the_merged_model_is_plain_and_speaks_as_base_and_adapter(tmp_path):
    inputs, unmerged = inputs_in(tmp_path)
    main(MergeLoraConfig(), inputs, tmp_path / "output")
    assert kind_of(tmp_path / "output") == "model"
    merged = load_causal_lm(tmp_path / "output")
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(merged(IDS).logits, unmerged(IDS).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(IDS).logits, make_model()(IDS).logits, atol=1e-2)
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    assert report["max_relative_difference"] <= report["tolerance"] == 1e-3
    assert (report["merged"], report["num_merged_layers"]) == ("layer by layer", 2 * 7)


def test_the_base_is_not_touched(tmp_path):
    inputs, _ = inputs_in(tmp_path)
    before = {path.name: path.read_bytes() for path in inputs["model"].iterdir()}
    main(MergeLoraConfig(), inputs, tmp_path / "output")
    assert {path.name: path.read_bytes() for path in inputs["model"].iterdir()} == before


def test_the_merged_model_is_saved_in_the_bases_precision(tmp_path):
    save_model(tmp_path / "base", make_model().to(torch.bfloat16), make_tokenizer())
    inputs, _ = inputs_in(tmp_path, tmp_path / "base")
    main(MergeLoraConfig(saved_tolerance=0.5), inputs, tmp_path / "output")
    assert json.loads((tmp_path / "output" / "report.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "output" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("strict", "message"),
    [
        ({"tolerance": 1e-12}, r"merged in float32 the layer differs.*allowed 1e-12"),
        ({"saved_tolerance": 1e-6}, r"1e-06"),
    ],
)
def test_a_difference_beyond_the_tolerance_leaves_no_model(tmp_path, strict, message):
    save_model(tmp_path / "base", make_model().to(torch.bfloat16), make_tokenizer())
    inputs, _ = inputs_in(tmp_path, tmp_path / "base")
    with pytest.raises(ModelsDiffer, match=message):
        main(MergeLoraConfig(**strict), inputs, tmp_path / "output")
    assert not list((tmp_path / "output").iterdir())


def test_a_model_given_as_the_adapter_is_refused_naming_both(tmp_path):
    model = write_model(tmp_path / "base")
    with pytest.raises(InputError, match=r"expected a LoRA adapter.*found a causal language model"):
        main(MergeLoraConfig(), {"model": model, "adapter": model}, tmp_path / "output")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    inputs, _ = inputs_in(tmp_path, write_model(tmp_path / "other", intermediate_size=32))
    with pytest.raises(InputError, match="does not fit"):
        main(MergeLoraConfig(), inputs, tmp_path / "output")

"""The model in fewer bits: transformers loads it from its folder, and it speaks nearly as before."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.errors import InputError
from tasks.export import run
from tasks.export.config import ExportConfig
from tasks.models.logits import ModelsDiffer
from tests.tasks.tiny_models import make_tokenizer, write_model


@pytest.fixture
def inputs(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    return {"model": write_model(tmp_path / "model", **sizes)}


def test_without_the_library_nothing_begins(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(InputError, match="Install the extra `quantized`"):
        run.main(ExportConfig(quantized=["int8"]), inputs, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("form", "largest_share"), [("int8", 0.55), ("int4", 0.45)])
def test_the_quantized_model_loads_and_is_smaller(inputs, tmp_path, form, largest_share):
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")

    run.main(ExportConfig(quantized=[form]), inputs, tmp_path / "output")

    folder = tmp_path / "output" / form
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    figures = report["forms"][form]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert model.config.quantization_config is not None
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == make_tokenizer().get_vocab()
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".jinja"}
    assert size < largest_share * report["weights_bytes"]
    assert 0 < figures["max_logit_difference"] < figures["tolerance"] * figures["max_logit"]
    assert report["max_logit_difference"] == 0
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[3, 5, 7]])).logits).all()


def test_a_quantized_model_too_far_from_its_source_is_refused(inputs, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")

    with pytest.raises(ModelsDiffer, match="with bitsandbytes installed"):
        run.main(ExportConfig(quantized=["int4"], int4_tolerance=1e-6), inputs, tmp_path / "output")
    assert not (tmp_path / "output" / "config.json").exists()


def test_a_quantized_model_is_no_source_of_an_export(inputs, tmp_path):
    path = inputs["model"] / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))

    with pytest.raises(InputError, match="its weights are quantised"):
        run.main(ExportConfig(), inputs, tmp_path / "output")

"""The adapter alone: PEFT loads it on the base that it names, and it speaks as the merged model."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.errors import InputError
from tasks.export import run
from tasks.export.adapter import find_base
from tasks.export.config import AdapterForm, ExportConfig
from tasks.models.logits import ModelsDiffer
from tests.tasks.evaluate import tiny_chain
from tests.tasks.export.tiny_export import write_adapted

IDS = torch.tensor([[2, 4, 8, 7, 3]])


@pytest.fixture
def inputs(tmp_path):
    return write_adapted(tmp_path)


def test_peft_loads_the_adapter_on_the_base_that_it_names(inputs, tmp_path):
    config = ExportConfig(adapter=AdapterForm(base=str(inputs["adapter_base"])))
    run.main(config, inputs, tmp_path / "output")

    folder = tmp_path / "output" / "adapter"
    with torch.no_grad():
        adapted = AutoPeftModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "output").eval()(IDS).logits
        base = AutoModelForCausalLM.from_pretrained(inputs["adapter_base"]).eval()(IDS).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base, merged, atol=1e-2)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tiny_chain.make_tokenizer().get_vocab()
    form = json.loads((tmp_path / "output" / "report.json").read_text())["forms"]["adapter"]
    assert form["max_logit_difference"] <= 0.001 * form["max_logit"]
    assert (form["prompt"], form["loaded_class"]) == ("Hello", "PeftModelForCausalLM")
    assert "| `adapter` |" in (tmp_path / "output" / "README.md").read_text()


def test_an_adapter_of_another_model_is_refused_and_nothing_is_kept(inputs, tmp_path):
    path = inputs["adapter"] / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)

    with pytest.raises(ModelsDiffer, match="AutoPeftModelForCausalLM"):
        run.main(ExportConfig(adapter=AdapterForm(base="org/base")), inputs, tmp_path / "output")

    assert {path.name for path in (tmp_path / "output").iterdir()} <= {"metrics.jsonl"}


@pytest.mark.parametrize(
    ("known", "name", "revision"),
    [
        ({"uri": "hf://org/base@c0ffee"}, "org/base", "c0ffee"),
        ({"uri": "file:///srv/my%20base"}, "/srv/my base", None),
    ],
)
def test_a_base_from_the_hub_or_a_folder_is_named_by_itself(inputs, known, name, revision):
    base = find_base(AdapterForm(), inputs, {"adapter_base": known})

    assert (base.name, base.revision) == (name, revision)


@pytest.mark.parametrize("uri", ["s3://bucket/artifacts/sft/1", "file:///store/artifacts/sft/1"])
def test_a_base_that_only_a_store_holds_has_to_be_named(inputs, uri):
    lineage = {"adapter_base": {"uri": uri, "stage": "sft"}}

    with pytest.raises(InputError, match=r"set export\.adapter\.base"):
        find_base(AdapterForm(), inputs, lineage)
    assert find_base(AdapterForm(base="org/base"), inputs, lineage).name == "org/base"


def test_without_an_adapter_there_is_no_such_form(inputs, tmp_path):
    with pytest.raises(InputError, match="--input adapter=DIR is missing"):
        run.main(ExportConfig(adapter=AdapterForm()), {"model": inputs["model"]}, tmp_path / "output")

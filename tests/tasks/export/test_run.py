import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tasks.data import encode_prompt
from tasks.errors import InputError
from tasks.export import run
from tasks.export.config import ExportConfig
from tasks.models.logits import ModelsDiffer
from tests.tasks.evaluate import tiny_chain
from tests.tasks.export.tiny_export import write_evaluation

IDS = torch.tensor([[2, 4, 8, 7, 3]])


@pytest.fixture
def inputs(tmp_path):
    return {
        "model": tiny_chain.write_model(tmp_path / "model", seed=0),
        "evaluation": write_evaluation(tmp_path / "evaluation"),
    }


@pytest.fixture
def output(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def logits(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(IDS).logits


def test_an_export_loads_from_its_folder_alone_and_computes_the_same(inputs, output):
    run.main(ExportConfig(), inputs, output)

    report = json.loads((output / "report.json").read_text())
    names = {
        *("config.json", "generation_config.json", "model.safetensors", "README.md", "report.md", "report.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "metrics.jsonl", "serve.sh"),
    }
    assert {path.name for path in output.iterdir()} == names
    assert torch.equal(logits(output), logits(inputs["model"]))
    assert AutoTokenizer.from_pretrained(output).get_vocab() == tiny_chain.make_tokenizer().get_vocab()
    assert (report["loaded_class"], report["max_logit_difference"]) == ("LlamaForCausalLM", 0.0)
    assert report["num_greedy_texts"] == report["num_greedy_texts_equal"] == 4
    assert report["weights_bytes"] == (output / "model.safetensors").stat().st_size
    assert report["answer"] in (output / "README.md").read_text()
    assert (output / "report.md").read_text() == (inputs["evaluation"] / "report.md").read_text()


def test_the_export_samples_as_it_was_evaluated(inputs, output):
    run.main(ExportConfig(), inputs, output)

    config = GenerationConfig.from_pretrained(output)
    assert (config.do_sample, config.temperature, config.top_k, config.max_new_tokens) == (True, 0.8, 0, 5)
    assert (config.eos_token_id, config.pad_token_id) == (1, 0)


def test_a_plain_models_chat_template_gives_the_prompt_it_was_trained_on(inputs, output):
    run.main(ExportConfig(), inputs, output)

    tokenizer = AutoTokenizer.from_pretrained(output)
    message = {"role": "user", "content": "good film"}
    ids = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == encode_prompt(tokenizer, "good film") == [2, 4]


def test_a_plain_template_begins_with_bos_where_the_tokenizer_does(inputs, output):
    tokenizer = tiny_chain.make_tokenizer()
    tokenizer.bos_token = "very"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("very $0", None, [("very", 8)])
    tokenizer.save_pretrained(inputs["model"])

    run.main(ExportConfig(), inputs, output)

    exported = AutoTokenizer.from_pretrained(output)
    ids = exported.apply_chat_template([{"role": "user", "content": "good film"}], return_dict=True)["input_ids"]
    assert ids == encode_prompt(exported, "good film") == [8, 2, 4]


def test_a_chat_template_that_is_there_stays(inputs, output):
    tokenizer = AutoTokenizer.from_pretrained(inputs["model"])
    tokenizer.chat_template = "{{ messages[0]['content'] }} very"
    tokenizer.save_pretrained(inputs["model"])

    evaluation = write_evaluation(output.parent / "conversational", conversational=True)
    run.main(ExportConfig(), inputs | {"evaluation": evaluation}, output)

    assert AutoTokenizer.from_pretrained(output).chat_template == "{{ messages[0]['content'] }} very"
    assert "apply_chat_template" in (output / "README.md").read_text()


def test_bfloat16_weights_are_half_as_large_and_close(inputs, output):
    run.main(ExportConfig(dtype="bfloat16"), inputs, output)

    report = json.loads((output / "report.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(output, dtype="auto").dtype == torch.bfloat16
    assert 0 < report["max_logit_difference"] < 0.05 * report["max_logit"]
    assert (logits(output).float() - logits(inputs["model"])).abs().max() < 0.05 * report["max_logit"]


def test_a_changed_precision_beyond_the_tolerance_is_an_error(inputs, output):
    with pytest.raises(ModelsDiffer, match="loads says something else than the model before export"):
        run.main(ExportConfig(dtype="bfloat16", logit_tolerance=1e-9), inputs, output)

    assert not (output / "config.json").exists()


def test_as_is_keeps_bfloat16_and_its_logits(inputs, output):
    folder = inputs["model"]
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)

    run.main(ExportConfig(), inputs, output)

    assert json.loads((output / "report.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(logits(output), logits(folder))


def test_as_is_leaves_a_tensor_of_another_precision_as_it_is(inputs, output):
    path = inputs["model"] / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"].bfloat16()}, path, metadata={"format": "pt"})

    run.main(ExportConfig(), inputs, output)

    exported = load_file(output / "model.safetensors")
    assert exported["model.norm.weight"].dtype == torch.bfloat16
    assert exported["lm_head.weight"].dtype == torch.float32


def test_small_shards_make_several_files_that_load(inputs, output):
    run.main(ExportConfig(max_shard_size="4KB"), inputs, output)

    assert len(list(output.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(output), logits(inputs["model"]))


def test_damaged_weights_are_noticed_and_leave_no_model(inputs, output, monkeypatch):
    def write_damaged(folder, *rest, **options):
        write_package(folder, *rest, **options)
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        tensors["lm_head.weight"][3] += 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    write_package = run.write_package
    monkeypatch.setattr(run, "write_package", write_damaged)

    with pytest.raises(ModelsDiffer, match="loads says something else than the model before export"):
        run.main(ExportConfig(), inputs, output)

    assert not (output / "config.json").exists()


def test_what_an_interrupted_attempt_left_does_not_reach_the_export(inputs, output):
    (output / "unchecked").mkdir()
    (output / "unchecked" / "half.json").write_text("{")

    run.main(ExportConfig(), inputs, output)

    assert not (output / "half.json").exists()


def test_parents_stand_on_the_card(inputs, output, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "report.json").write_text(json.dumps({"counts": {"prompts_test": 8}}))
    (tmp_path / "lineage").mkdir()
    lineage = {
        "data": {"uri": "file:///data", "digest": "d1"},
        "ppo": {"uri": "file:///ppo", "config": {"kl_coef": 0.125}},
    }
    (tmp_path / "lineage" / "lineage.json").write_text(json.dumps(lineage))
    (tmp_path / "ppo").mkdir()
    parents = {name: tmp_path / name for name in ("data", "ppo", "lineage")}

    run.main(ExportConfig(name="Mine"), inputs | parents, output)

    card = (output / "README.md").read_text()
    assert "# Mine\n" in card
    assert "| counts.prompts_test | 8 |" in card
    assert "| Data | `file:///data` | `d1` |" in card
    assert '"kl_coef": 0.125' in card


def test_a_reward_model_is_no_model_to_export(inputs, output, tmp_path):
    reward_model = tiny_chain.write_reward_model(tmp_path / "reward_model")

    with pytest.raises(InputError, match="expected a causal language model"):
        run.main(ExportConfig(), inputs | {"model": reward_model}, output)


def test_an_evaluation_without_samples_is_refused(inputs, output):
    (inputs["evaluation"] / "samples.json").unlink()

    with pytest.raises(InputError, match=r"samples\.json is missing"):
        run.main(ExportConfig(), inputs, output)

"""The Modelfile's text, against what Ollama's documentation asks for."""

import json

import pytest

from tasks.errors import InputError
from tasks.export import run
from tasks.export.config import ExportConfig
from tasks.export.ollama import go_template, modelfile
from tasks.export.turns import Turns, take_apart
from tests.tasks.evaluate import tiny_chain
from tests.tasks.export.test_turns import CHATML, LLAMA_3, MISTRAL, QWEN, tokenizer_with
from tests.tasks.export.tiny_export import SAMPLING, write_evaluation


def write_folder(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 32, **config}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    return folder


def test_a_modelfile_has_weights_template_sampling_and_stops(tmp_path):
    text = modelfile(
        write_folder(tmp_path), tokenizer_with(QWEN), weights=".", sampling=SAMPLING, stop_strings=["Customer:", "\n\n"]
    )

    assert text == (
        "FROM .\n"
        'TEMPLATE """{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}{{ if not $last }}<|im_end|>\n{{ end }}'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n{{ end }}{{ end }}"""\n'
        'SYSTEM "You are helpful."\n'
        "PARAMETER num_ctx 32\n"
        "PARAMETER temperature 0.8\n"
        "PARAMETER top_k 0\n"
        "PARAMETER top_p 1.0\n"
        "PARAMETER min_p 0.0\n"
        "PARAMETER repeat_penalty 1.0\n"
        "PARAMETER num_predict 5\n"
        'PARAMETER stop "<eos>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "Customer:"\n'
        'PARAMETER stop """\n\n"""\n'
    )


def test_without_an_evaluation_ollamas_sampling_stays(tmp_path):
    text = modelfile(write_folder(tmp_path), tokenizer_with(CHATML), weights=".", sampling={}, stop_strings=[])

    assert "temperature" not in text
    assert "SYSTEM" not in text


def test_bos_is_written_only_where_the_tokenizer_does_not_add_it():
    turns = take_apart(tokenizer_with(LLAMA_3, bos=True))

    assert go_template(turns, bos_is_added=True).startswith("{{ range")
    assert go_template(turns, bos_is_added=False).startswith("very{{ range")


def test_what_gos_template_would_take_for_an_action_is_written_as_a_text():
    turns = Turns("", {"user": ('{{"', "\n"), "assistant": ("", "")}, "", None)

    assert '{{ "{{\\"" }}{{ .Content }}\n' in go_template(turns, bos_is_added=False)


def test_a_text_that_no_modelfile_can_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="three quotes"):
        modelfile(write_folder(tmp_path), tokenizer_with(CHATML), weights=".", sampling={}, stop_strings=['"""'])


def test_an_export_with_a_modelfile(tmp_path):
    inputs = {
        "model": tiny_chain.write_model(tmp_path / "model", seed=0),
        "evaluation": write_evaluation(tmp_path / "evaluation", stop_strings=["Customer:"]),
    }
    run.main(ExportConfig(modelfile=True), inputs, tmp_path / "output")

    text = (tmp_path / "output" / "Modelfile").read_text()
    assert text.startswith('FROM .\nTEMPLATE """{{ range')
    assert 'PARAMETER stop "Customer:"\n' in text
    assert "ollama create" in (tmp_path / "output" / "README.md").read_text()


def test_a_template_that_ollama_cannot_have_is_refused_before_any_work(tmp_path):
    folder = tiny_chain.write_model(tmp_path / "model", seed=0)
    tokenizer_with(MISTRAL).save_pretrained(folder)

    with pytest.raises(InputError, match="The chat template does more than"):
        run.main(ExportConfig(modelfile=True), {"model": folder}, tmp_path / "output")
    assert not (tmp_path / "output").exists()

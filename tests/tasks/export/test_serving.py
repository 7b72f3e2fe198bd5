import json
import subprocess

import pytest

from tasks.export.serving import serve_command, serve_script, served_name


def write_config(folder, **options):
    (folder / "config.json").write_text(json.dumps(options))
    return folder


def test_the_command_has_the_models_precision_and_length(tmp_path):
    folder = write_config(tmp_path, max_position_embeddings=4096)

    assert serve_command(folder, "org/model", "bfloat16", "My model") == (
        "vllm serve org/model --served-model-name my-model --dtype bfloat16 --max-model-len 4096"
    )


def test_a_model_without_a_longest_context_gets_none(tmp_path):
    assert "--max-model-len" not in serve_command(write_config(tmp_path), ".", "float32", "x")


def test_the_script_serves_the_folder_it_lies_in_with_the_options_given(tmp_path):
    (tmp_path / "a folder").mkdir()
    folder = write_config(tmp_path / "a folder")
    (folder / "serve.sh").write_text(serve_script(folder, "float32", 'it\'s "$HOME"'))
    (tmp_path / "vllm").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (tmp_path / "vllm").chmod(0o755)

    told = subprocess.run(
        ["/bin/sh", str(folder / "serve.sh"), "--port", "8001"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert told == ["serve", str(folder), "--served-model-name", "it-s-home", "--dtype", "float32", "--port", "8001"]


@pytest.mark.parametrize(("title", "name"), [("Aligned model", "aligned-model"), ("Qwen2.5 (PPO)", "qwen2.5-ppo")])
def test_clients_name_the_model_by_its_title(title, name):
    assert served_name(title) == name
    assert served_name("模型") == "model"

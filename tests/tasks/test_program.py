import errno
import json

import pytest
import torch
from pydantic import Field
from safetensors import SafetensorError

from tasks.config import Config
from tasks.errors import InputError
from tasks.program import REFUSED, explain, load_config, require, run_program


class Options(Config):
    size: int = Field(1, ge=1)


def arguments(tmp_path, config="{}", inputs=()):
    (tmp_path / "config.json").write_text(config)
    given = [part for pair in inputs for part in ("--input", pair)]
    return ["--config", str(tmp_path / "config.json"), *given, "--output", str(tmp_path / "new" / "output")]


def run(stage, argv):
    run_program(stage, Options, argv)


def refusal(stage, argv, tmp_path, capsys):
    """The message of a run that must refuse, the same on stderr and in error.json, without a traceback."""
    with pytest.raises(SystemExit) as ended:
        run(stage, argv)
    message = json.loads((tmp_path / "new" / "output" / "error.json").read_text())["message"]
    shown = capsys.readouterr().err
    assert ended.value.code == REFUSED == 2
    assert shown == f"error: {message}\n"
    return message


def failing(error):
    def stage(config, inputs, output):
        raise error

    return stage


def must_not_run(config, inputs, output):
    raise AssertionError("the stage ran")


def test_a_stage_gets_its_config_its_inputs_and_an_output_folder_that_exists(tmp_path):
    calls = []
    argv = arguments(tmp_path, '{"size": 3}', ["data=/a/b", "model=x=y"])

    run(lambda config, inputs, output: calls.append((config, inputs, output.is_dir())), argv)

    [(config, inputs, exists)] = calls
    assert config == Options(size=3)
    assert {name: str(folder) for name, folder in inputs.items()} == {"data": "/a/b", "model": "x=y"}
    assert exists


def test_an_input_error_is_told_and_kept_for_the_launcher(tmp_path, capsys):
    assert refusal(failing(InputError("no such column")), arguments(tmp_path), tmp_path, capsys) == "no such column"


def test_a_bug_keeps_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), arguments(tmp_path))
    with pytest.raises(PermissionError):
        run(failing(PermissionError(errno.EACCES, "denied")), arguments(tmp_path))


def test_an_earlier_refusal_is_forgotten(tmp_path, capsys):
    refusal(failing(InputError("first")), arguments(tmp_path), tmp_path, capsys)

    run(lambda *_: None, arguments(tmp_path))

    assert not (tmp_path / "new" / "output" / "error.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/big"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_whoever_noticed_it(tmp_path, capsys, error):
    message = refusal(failing(error), arguments(tmp_path), tmp_path, capsys)

    assert message.startswith("The disk is full: /data/big." if error.args[-1] == "/data/big" else "The disk is full: ")
    assert "Free space there" in message


def ask_for_too_much(config, inputs, output):
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("stage", "device"),
    [
        (ask_for_too_much, "cpu"),
        (failing(MemoryError()), "cpu"),
        (failing(OSError(errno.ENOMEM, "Cannot allocate memory")), "cpu"),
        (failing(torch.OutOfMemoryError("CUDA out of memory. Tried")), "cuda"),
        (failing(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")), "cuda"),
    ],
)
def test_too_little_memory_is_told_with_what_to_lower(tmp_path, capsys, stage, device):
    message = refusal(stage, arguments(tmp_path), tmp_path, capsys)

    assert message.startswith("The memory does not suffice (")
    assert "batch size" in message
    assert json.loads((tmp_path / "new" / "output" / "error.json").read_text())["out_of_memory"] == device


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('{"size": 0}', "size: Input should be greater than or equal to 1 (got 0)"),
        ('{"sise": 2}', "sise: Extra inputs are not permitted (got 2)"),
        ("{", "config: Invalid JSON"),
    ],
)
def test_a_wrong_config_is_refused_before_the_stage_runs(tmp_path, capsys, config, problem):
    message = refusal(must_not_run, arguments(tmp_path, config), tmp_path, capsys)

    assert message.startswith(str(tmp_path / "config.json"))
    assert problem in message


def test_a_config_that_is_missing_or_a_folder_is_told(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_config(Options, tmp_path / "nothing.json")
    with pytest.raises(InputError, match="is a folder"):
        load_config(Options, tmp_path)


def test_a_password_in_a_refused_address_is_not_shown():
    with pytest.raises(ValueError, match="validation error") as refused:
        Options.model_validate({"size": "https://user:pass@host/path"})
    assert "(got 'https://(hidden)@host/path')" in explain(refused.value)


def test_every_refused_field_has_a_line_of_its_own():
    with pytest.raises(ValueError, match="2 validation errors") as refused:
        Options.model_validate({"size": "many", "other": {"long": "x" * 1000}})

    lines = explain(refused.value).split("\n")
    assert [line.split(":")[0].strip() for line in lines] == ["size", "other"]
    assert all(len(line) < 300 for line in lines)


@pytest.mark.parametrize("pair", ["data", "=/folder", "data="])
def test_an_input_without_name_or_folder_is_refused(tmp_path, capsys, pair):
    assert "expected NAME=DIR" in refusal(must_not_run, arguments(tmp_path, inputs=[pair]), tmp_path, capsys)


def test_an_input_given_twice_is_refused(tmp_path, capsys):
    message = refusal(must_not_run, arguments(tmp_path, inputs=["data=/a", "data=/b"]), tmp_path, capsys)

    assert message == "--input data is given twice: /a and /b. Give it once."


def test_required_inputs_must_be_given_and_be_folders(tmp_path):
    (tmp_path / "file").write_text("")

    require({"data": tmp_path}, "data")
    with pytest.raises(InputError, match="--input model=DIR is missing; given: data"):
        require({"data": tmp_path}, "data", "model")
    with pytest.raises(InputError, match="given: none"):
        require({}, "model")
    with pytest.raises(InputError, match="is not a folder"):
        require({"data": tmp_path / "file"}, "data")


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Options().size = 2

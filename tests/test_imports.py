"""Who may load whom: each group is imported in a fresh interpreter, which then says what it has loaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.artifacts import CARRIERS, SHARED_PACKAGES

PROJECT = Path(__file__).resolve().parent.parent
STAGES = sorted(
    path.parent.name for path in PROJECT.glob("tasks/*/*.py") if "    run_program(main, " in path.read_text()
)


def modules(*patterns: str) -> list[str]:
    paths = [path for pattern in patterns for path in sorted(PROJECT.glob(pattern)) if path.name != "__init__.py"]
    return [".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in paths]


def loaded_by(names: list[str]) -> set[str]:
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_there_are_nine_stages() -> None:
    assert len(STAGES) == 9


@pytest.mark.slow
def test_what_prefect_loads_never_loads_torch() -> None:
    names = [*modules("flows/*.py", "tasks/*/config.py"), "tasks.stages", "infra.run", "infra.deploy"]
    assert len(names) >= 14
    assert not loaded_by(names) & {"torch", "transformers", "datasets"}


@pytest.mark.slow
def test_stages_do_not_load_flows() -> None:
    assert not {name for name in loaded_by(["tasks.stages"]) if name.split(".")[0] == "flows"}


def test_the_runner_and_the_artifacts_load_neither_prefect_nor_torch() -> None:
    names = ["runner", "artifacts", "supervisor", "lifeline", "launch", "gate", "champion", "report.__main__"]
    assert not loaded_by([f"tasks.{name}" for name in names]) & {"prefect", "torch"}


@pytest.mark.slow
def test_stage_programs_know_neither_prefect_nor_s3_nor_the_runner() -> None:
    names = modules(*(f"tasks/{stage}/*.py" for stage in STAGES))
    assert len(names) >= 20
    assert not loaded_by(names) & {"prefect", "tasks.storage.s3", "tasks.stages", "tasks.runner", "tasks.artifacts"}


def test_one_module_of_tasks_imports_boto3() -> None:
    importing = [path.name for path in PROJECT.glob("tasks/**/*.py") if "boto3" in imports_of(path)]
    assert importing == ["s3_requests.py"]


def test_what_only_carries_files_is_in_no_stages_code_version() -> None:
    speaking_s3 = [
        path for path in PROJECT.glob("tasks/**/*.py") if {"boto3", "botocore.exceptions"} & {*imports_of(path)}
    ]
    assert len(speaking_s3) >= 4
    assert {path.parent.name for path in speaking_s3} == {"storage"}
    assert not {"storage", "retention"} & {*SHARED_PACKAGES, *STAGES}
    assert [name for name in CARRIERS if not (PROJECT / "tasks" / f"{name}.py").is_file()] == []


@pytest.mark.slow
def test_the_objective_loads_torch_alone() -> None:
    beyond = loaded_by(["tasks.ppo.objective"]) - loaded_by(["torch"])
    assert beyond == {"tasks", "tasks.ppo", "tasks.ppo.objective"}


def test_no_stage_imports_another() -> None:
    checked = 0
    for stage in STAGES:
        for path in (PROJECT / "tasks" / stage).rglob("*.py"):
            checked += 1
            for imported in imports_of(path):
                parts = imported.split(".")
                assert parts[0] != "tasks" or parts[1] not in STAGES or parts[1] == stage, f"{path} imports {imported}"
    assert checked >= 24


def test_every_init_file_is_empty() -> None:
    files = [
        path for folder in ("flows", "tasks", "infra", "tests") for path in (PROJECT / folder).rglob("__init__.py")
    ]
    assert len(files) >= 15
    assert not [path for path in files if path.read_text()]


def imports_of(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    direct = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return direct + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]

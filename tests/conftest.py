"""Stores to test against: a folder always, and in the slow part real S3 servers, each started once; what to publish."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import s3_servers
from tests.tasks.publishing import CHUNK

AWS_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
NO_ACCOUNT = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with s3_servers.swift(tmp_path_factory.mktemp("swift")) as environment:
        yield environment


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with s3_servers.ceph(tmp_path_factory.mktemp("ceph")) as environment:
        yield environment


@pytest.fixture
def set_account(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Makes S3 clients see this environment, and nothing of the person who runs the tests."""
    for name in AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_variables(environment: Mapping[str, str]) -> None:
        for name, value in {**NO_ACCOUNT, **environment}.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in ("swift", "ceph")])
def s3_uri(request: pytest.FixtureRequest, set_account: Callable[[Mapping[str, str]], None], tmp_path: Path) -> str:
    """A prefix on each real server that no other test uses."""
    set_account(request.getfixturevalue(request.param))
    return f"s3://test-artifacts/{tmp_path.name}"


@pytest.fixture(params=["file", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swift", "ceph"))])
def store_uri(request: Any, set_account: Callable[[Mapping[str, str]], None], tmp_path: Path) -> str:
    """An empty store of each sort."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    set_account(request.getfixturevalue(request.param))
    return f"s3://test-artifacts/{tmp_path.name}"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What a stage left: small files, an empty one, one in a folder, one of four chunks, and what is not published."""
    folder = tmp_path / "output"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["Fish"]}')
    (folder / "empty").touch()
    (folder / "deep" / "er" / "ä file.txt").write_text("text")
    (folder / "model.safetensors").write_bytes(os.urandom(3 * CHUNK + 5))
    (folder / "checkpoints" / "step-1" / "state").write_text("not for others")
    (folder / "error.json").write_text("{}")
    return folder

"""The S3 servers that are put to the test, each in a folder of its own, and the environment of their clients."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.conftest import AWS_VARIABLES, NO_ACCOUNT
from tests.s3_servers import ceph, swift

SERVERS = {"swift": swift, "ceph": ceph}
ENDPOINT = "AWS_ENDPOINT_URL_S3"


@contextmanager
def account(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's S3 clients see these variables, and nothing of the person who runs the tests."""
    with variables_set({**dict.fromkeys(AWS_VARIABLES, None), **NO_ACCOUNT, **variables}):
        yield


@contextmanager
def variables_set(variables: Mapping[str, str | None]) -> Iterator[None]:
    """These environment variables inside, None for one that shall not be there; what was before, after."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    for name in variables:
        if variables[name] is None:
            os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def port_of(variables: Mapping[str, str]) -> int:
    """Where the server of this account listens on loopback."""
    port = urlsplit(variables[ENDPOINT]).port
    assert port is not None
    return port

"""What a server is found to be able to do, and that it is kept and not believed for ever."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tasks.storage import s3, s3_abilities
from tasks.storage.s3 import S3Store
from tasks.storage.s3_abilities import Abilities, probe
from tasks.storage.stores import store_at
from tests.tasks.able import ABLE


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_found", {})


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The store of every probe."""
    probes: list[str] = []
    monkeypatch.setattr(s3_abilities, "probe", lambda store: probes.append(store.uri) or probe(store))
    return probes


def store_of(uri: str) -> S3Store:
    store = store_at(uri)
    assert isinstance(store, S3Store)
    return store


EXPECTED = {
    "swift": {"conditional_create": True, "conditional_replace": "none", "checks_content": True, "lists_uploads": True},
    "ceph": {
        "conditional_create": True,
        "conditional_replace": "unquoted",
        "checks_content": True,
        "lists_uploads": True,
    },
}


def test_real_servers_are_found_as_they_are(s3_uri: str, request: pytest.FixtureRequest) -> None:
    store = store_of(s3_uri)
    found = store.abilities()
    expected = EXPECTED[request.node.callspec.params["s3_uri"]]
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.endpoint == store.endpoint
    assert [file.name.split("-")[0] for file in store.files("")] == ["server"]
    assert list(store.unfinished("")) == []


def test_what_was_found_is_kept_in_the_process_and_in_the_store(
    s3_uri: str, probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_of(s3_uri).abilities()
    assert store_of(s3_uri).abilities() == first
    monkeypatch.setattr(s3, "_found", {})
    assert store_of(s3_uri).abilities() == first
    assert len(probes) == 1
    store_of(s3_uri).abilities(anew=True)
    assert len(probes) == 2
    [kept] = store_of(s3_uri).files("server-")
    store_of(s3_uri).write(kept.name, b'{"torn')
    monkeypatch.setattr(s3, "_found", {})
    assert store_of(s3_uri).abilities().conditional_create == first.conditional_create
    assert len(probes) == 3


def test_many_who_find_out_at_once_agree(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(s3_uri)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: probe(store), range(3)))
    assert len({each.model_copy(update={"found": ""}).model_dump_json() for each in found}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ignored", "ability", "expected"),
    [
        ("IfNoneMatch", "conditional_create", False),
        ("IfMatch", "conditional_replace", "none"),
    ],
)
def test_a_server_that_ignores_a_condition_is_found_out(
    ignored: str, ability: str, expected: Any, ceph: Mapping[str, str], set_account: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    set_account(ceph)
    ask = S3Store._ask

    def without(self: S3Store, client: Any, operation: str, name: str, arguments: Mapping[str, Any]) -> Any:
        return ask(self, client, operation, name, {key: value for key, value in arguments.items() if key != ignored})

    monkeypatch.setattr(S3Store, "_ask", without)
    assert getattr(probe(store_of("s3://test-artifacts/ignoring")), ability) == expected


@pytest.mark.slow
def test_uploads_that_are_not_listed_are_found_out(
    ceph: Mapping[str, str], set_account: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_account(ceph)
    monkeypatch.setattr(S3Store, "unfinished", lambda self, prefix: iter(()))
    assert not probe(store_of("s3://test-artifacts/unlisted")).lists_uploads


@pytest.mark.slow
def test_an_upload_whose_id_came_spoilt_is_tried_again(
    ceph: Mapping[str, str], set_account: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_account(ceph)
    ask, begun = S3Store._ask, []

    def spoilt_once(self: S3Store, client: Any, operation: str, name: str, arguments: Mapping[str, Any]) -> Any:
        answer = ask(self, client, operation, name, arguments)
        if operation == "create_multipart_upload":
            begun.append(name)
            answer["UploadId"] = answer["UploadId"].swapcase() if len(begun) == 1 else answer["UploadId"]
        return answer

    monkeypatch.setattr(S3Store, "_ask", spoilt_once)
    assert probe(store_of("s3://test-artifacts/spoilt")).lists_uploads
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("field", "without", "says"),
    [
        ("conditional_create", False, "If-None-Match is not sent"),
        ("checks_content", False, "this side alone compares"),
        ("lists_uploads", False, "begins anew"),
    ],
)
def test_what_is_missing_is_told_with_what_follows(field: str, without: bool, says: str) -> None:
    lacking = ABLE.model_copy(update={field: without})
    assert not [row for row in ABLE.consequences() if says in row[2]]
    assert [row[1] for row in lacking.consequences() if says in row[2]] == ["no"]


def test_kept_abilities_of_another_version_are_not_believed() -> None:
    with pytest.raises(ValueError, match="format"):
        Abilities.model_validate(ABLE.model_dump() | {"format": 2})

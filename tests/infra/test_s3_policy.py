"""The bucket policy, on Ceph: a second account may do in its prefix what a store does, and nothing elsewhere."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.check_store import report
from tasks.artifacts import fetch, find
from tasks.errors import InputError
from tasks.storage.s3 import S3Store
from tasks.storage.stores import store_at
from tests.s3_servers import SECOND_USER, SECOND_USERS_NAME
from tests.tasks.publishing import KEY, contents, published

POLICY = Path(__file__).parents[2] / "infra" / "s3" / "policy.json"
BUCKET = "test-policy"

pytestmark = pytest.mark.slow


@pytest.fixture
def allowed(ceph: Mapping[str, str], set_account: Callable[[Mapping[str, str]], None]) -> Mapping[str, str]:
    """The first account's environment; the second, which has become ours, may use the prefix `ours`."""
    set_account(ceph)
    owner: Any = boto3.client("s3")
    owner.create_bucket(Bucket=BUCKET)
    placed = POLICY.read_text().replace("BUCKET", BUCKET).replace("PREFIX", "ours")
    policy = placed.replace("PRINCIPAL", f"arn:aws:iam:::user/{SECOND_USERS_NAME}")
    owner.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(json.loads(policy)))
    owner.put_object(Bucket=BUCKET, Key="theirs/secret", Body=b"secret")
    owner.put_object(Bucket=BUCKET, Key="ours-too/secret", Body=b"secret")
    set_account({**ceph, **SECOND_USER})
    return ceph


def test_publish_and_fetch_work(allowed: Mapping[str, str], output: Path, tmp_path: Path) -> None:
    store = store_at(f"s3://{BUCKET}/ours")
    artifact = published(store, output)
    assert find(store, "sft", KEY) == artifact
    data = (output / "model.safetensors").read_bytes()
    assert contents(fetch(store, artifact, tmp_path / "cache"))["model.safetensors"] == data
    assert find(store, "sft", "f" * 32) is None


def test_what_a_sweep_does_works(allowed: Mapping[str, str]) -> None:
    store = S3Store(BUCKET, "ours/sweep")
    store.write("artifacts/old", b"data")
    store.call("create_multipart_upload", "artifacts/open")
    [unfinished] = store.unfinished("artifacts/")
    store.abort(unfinished)
    assert list(store.unfinished("artifacts/")) == []
    store.delete([file.name for file in store.files("artifacts/")])
    assert list(store.files("artifacts/")) == []


def test_the_check_of_a_store_works(allowed: Mapping[str, str]) -> None:
    text = report(f"s3://{BUCKET}/ours/check")
    assert "conditional create: yes; the first manifest of a key is the artifact." in text
    assert allowed["AWS_ENDPOINT_URL_S3"] in text


@pytest.mark.parametrize("uri", [f"s3://{BUCKET}", f"s3://{BUCKET}/theirs", f"s3://{BUCKET}/ours-too"])
def test_another_prefix_is_refused(uri: str, allowed: Mapping[str, str]) -> None:
    with pytest.raises(InputError, match=rf"{uri} at .*AccessDenied.*Give these keys the right .*infra/s3"):
        store_at(uri)


def test_an_object_elsewhere_is_refused(allowed: Mapping[str, str]) -> None:
    store = S3Store(BUCKET, "ours")
    client = store._requests._client
    for request in (
        lambda: client.get_object(Bucket=BUCKET, Key="theirs/secret"),
        lambda: client.put_object(Bucket=BUCKET, Key="theirs/new", Body=b"x"),
        lambda: client.delete_object(Bucket=BUCKET, Key="theirs/secret"),
        lambda: client.list_objects_v2(Bucket=BUCKET),
        lambda: client.get_bucket_policy(Bucket=BUCKET),
        lambda: client.delete_bucket(Bucket=BUCKET),
    ):
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            request()


def test_another_bucket_is_refused(allowed: Mapping[str, str], set_account: Callable[..., None]) -> None:
    set_account(allowed)
    boto3.client("s3").create_bucket(Bucket="test-policy-other")
    set_account({**allowed, **SECOND_USER})
    with pytest.raises(InputError, match=r"test-policy-other.*AccessDenied"):
        store_at("s3://test-policy-other/ours")

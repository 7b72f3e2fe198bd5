"""Publishing and fetching, against a folder and in the slow part against Swift and Ceph."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import artifacts
from tasks.artifacts import (
    Artifact,
    DamagedArtifact,
    Store,
    artifact_key,
    code_version,
    fetch,
    find,
    import_external,
    read_files,
    store_at,
)
from tasks.errors import InputError
from tasks.storage.content import Content
from tasks.storage.manifest import FileEntry, describe_file, describe_folder, sha256_of
from tests.tasks.publishing import CHUNK, KEY, contents, flip, published


@pytest.fixture
def store(store_uri: str) -> Store:
    return store_at(store_uri)


def manifest_name(key: str = KEY) -> str:
    return f"artifacts/sft/{key}/manifest.json"


def stored_name(store: Store, file: str) -> str:
    attempt = json.loads(store.read(manifest_name()) or b"")["attempt"]
    return f"artifacts/sft/{KEY}/{attempt}/{file}"


def overwrite(store: Any, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change what lies in the store behind the pipeline's back."""
    data = change(store.read(name))
    if store.uri.startswith("file://"):
        Path(store.uri.removeprefix("file://"), name).write_bytes(data)
    else:
        store.call("put_object", name, Body=data)


def test_what_is_fetched_is_what_was_published(store: Store, output: Path, tmp_path: Path) -> None:
    artifact = published(store, output)
    expected = {name: data for name, data in contents(output).items() if not name.startswith(("checkpoints/", "error"))}
    folder = fetch(store, artifact, tmp_path / "cache")
    assert contents(folder) == expected
    assert len(expected) == 4
    assert artifact.size_bytes == sum(map(len, expected.values()))
    assert find(store, "sft", KEY) == artifact
    assert import_external(artifact.uri) == artifact


def test_the_manifest_gives_the_hash_of_every_file_and_chunk(store: Store, output: Path) -> None:
    source = Artifact(uri="hf://a/b@c", kind="model", digest="d" * 64)
    published(store, output, inputs={"model": source})
    manifest = json.loads(store.read(manifest_name()) or b"")
    data = (output / "model.safetensors").read_bytes()
    parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    assert len(parts) == 4
    hashes = [hashlib.sha256(part) for part in parts]
    assert manifest["files"]["model.safetensors"] == {
        "size": len(data),
        "sha256": hashlib.sha256(b"".join(hash.digest() for hash in hashes)).hexdigest(),
        "chunks": [hash.hexdigest() for hash in hashes],
    }
    small = manifest["files"]["config.json"]
    whole = hashlib.sha256((output / "config.json").read_bytes()).hexdigest()
    assert (small["sha256"], small["chunks"]) == (whole, [whole])
    assert (manifest["kind"], manifest["config"], manifest["inputs"]) == ("model", {"lr": 1e-5}, {"model": "d" * 64})
    assert manifest["code_version"] == code_version("sft")


def test_an_attempt_that_ends_before_its_manifest_leaves_no_artifact(
    store: Any, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(name: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            published(store, output)
    assert find(store, "sft", KEY) is None
    (output / "config.json").write_text("another attempt's")
    assert contents(fetch(store, published(store, output), tmp_path / "cache"))["config.json"] == b"another attempt's"


def test_an_interrupted_upload_sends_only_what_is_missing(
    s3_uri: str, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = store_at(s3_uri)
    sent: list[tuple[str, int]] = []
    ask = type(store)._ask

    def record(self: Any, client: Any, operation: str, name: str, arguments: Any) -> dict[str, Any]:
        if operation == "upload_part" and arguments["PartNumber"] == 3 and not sent.count(("cut", 0)):
            sent.append(("cut", 0))
            raise KeyboardInterrupt
        if operation in ("put_object", "upload_part"):
            sent.append((name.rpartition("/")[2], arguments.get("PartNumber", 0)))
        return ask(self, client, operation, name, arguments)

    monkeypatch.setattr(type(store), "_ask", record)
    with pytest.raises(KeyboardInterrupt):
        published(store, output)
    before = set(sent)
    sent[:] = [("cut", 0)]
    artifact = published(store, output)
    assert ("model.safetensors", 3) in sent
    assert not before & set(sent[1:])
    data = (output / "model.safetensors").read_bytes()
    assert contents(fetch(store, artifact, tmp_path / "cache"))["model.safetensors"] == data


def test_two_publishers_at_once_end_in_one_whole_artifact(store_uri: str, tmp_path: Path) -> None:
    rounds = 4
    for attempt in range(rounds):
        key = artifact_key("sft", {"round": attempt}, {}, "code")
        folders = [tmp_path / f"{attempt}-{name}" for name in ("one", "two")]
        start = threading.Barrier(2)

        def race(folder: Path, key: str = key, start: threading.Barrier = start) -> Artifact:
            store = store_at(store_uri)
            start.wait()
            return published(store, folder, key)

        for folder in folders:
            folder.mkdir()
            for name in "abc":
                (folder / name).write_text(f"{folder.name} {name}")
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(race, folders)
        assert first == second
        fetched = contents(fetch(store_at(store_uri), first, tmp_path / "cache"))
        assert fetched in [contents(folder) for folder in folders]


def test_an_artifact_that_is_there_is_neither_replaced_nor_sent_again(
    store: Store, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published(store, output)
    (output / "config.json").write_text("later")
    monkeypatch.setattr(store, "begin", None)
    assert published(store, output) == first
    store.create(manifest_name(), b"later")
    assert find(store, "sft", KEY) == first


def test_a_flipped_bit_in_the_store_is_named_with_its_file_and_chunk(
    store: Store, output: Path, tmp_path: Path
) -> None:
    artifact = published(store, output)
    overwrite(store, stored_name(store, "model.safetensors"), flip(CHUNK + 7))
    with pytest.raises(
        DamagedArtifact, match=r"model\.safetensors is damaged: chunk 1 .*does not match its SHA-256.*Delete"
    ):
        fetch(store, artifact, tmp_path / "cache")
    assert not (tmp_path / "cache" / artifact.digest).exists()


def test_a_truncated_file_in_the_store_is_named(store: Store, output: Path, tmp_path: Path) -> None:
    artifact = published(store, output)
    overwrite(store, stored_name(store, "model.safetensors"), lambda data: data[: 2 * CHUNK])
    with pytest.raises(DamagedArtifact, match=r"model\.safetensors is damaged: chunk [23]"):
        fetch(store, artifact, tmp_path / "cache")


def test_a_folders_name_may_hold_spaces_and_percent_signs(output: Path, tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}/my%20store%25")
    artifact = published(store, output)
    assert (tmp_path / "my store%" / manifest_name()).is_file()
    assert import_external(artifact.uri) == artifact
    assert contents(fetch(store, artifact, tmp_path / "cache"))["config.json"]


@pytest.mark.parametrize("change", [lambda data: data.replace(b"1e-05", b"1e-04"), flip(0), lambda data: data[:50]])
def test_a_changed_manifest_is_refused(store: Store, output: Path, change: Callable[[bytes], bytes]) -> None:
    published(store, output)
    overwrite(store, manifest_name(), change)
    with pytest.raises(DamagedArtifact, match=r"manifest\.json is damaged"):
        find(store, "sft", KEY)


def test_a_manifest_that_was_spoilt_on_its_way_is_read_again(
    store: Store, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = published(store, output)
    read, answers = store.read, [flip(100), lambda data: data[:50]]

    def spoil(name: str) -> bytes | None:
        data = read(name)
        return answers.pop()(data or b"") if answers else data

    monkeypatch.setattr(store, "read", spoil)
    assert find(store, "sft", KEY) == artifact
    assert answers == []


def test_a_manifest_of_other_content_is_refused(store: Store, output: Path, tmp_path: Path) -> None:
    artifact = published(store, output)
    with pytest.raises(DamagedArtifact, match=f"its digest is {artifact.digest}, expected 000"):
        fetch(store, artifact.model_copy(update={"digest": "0" * 64}), tmp_path / "cache")


def test_a_file_that_changes_while_it_is_published_is_noticed(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(*arguments: Any) -> dict[str, FileEntry]:
        files = describe_folder(*arguments)
        (output / "config.json").write_text("changed")
        return files

    monkeypatch.setattr("tasks.artifacts.describe_folder", describe)
    with pytest.raises(RuntimeError, match=r"config\.json changed while"):
        published(store_at(f"file://{tmp_path}/store"), output)


def test_a_manifest_whose_names_leave_the_folder_is_refused(tmp_path: Path, output: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    published(store, output)

    def escape(data: bytes) -> bytes:
        manifest = json.loads(data.replace(b'"empty"', b'"../../empty"'))
        del manifest["checksum"]
        body = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        return json.dumps({**manifest, "checksum": hashlib.sha256(body).hexdigest()}).encode()

    overwrite(store, manifest_name(), escape)
    with pytest.raises(DamagedArtifact, match=r"'\.\./\.\./empty' leaves"):
        find(store, "sft", KEY)


def test_a_manifest_of_before_that_has_a_files_own_hash_is_read(tmp_path: Path, output: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    artifact = published(store, output)
    data = (output / "model.safetensors").read_bytes()

    def of_before(stored: bytes) -> bytes:
        manifest = json.loads(stored)
        manifest["files"]["model.safetensors"]["sha256"] = hashlib.sha256(data).hexdigest()
        del manifest["checksum"]
        return json.dumps({**manifest, "checksum": sha256_of(manifest)}).encode()

    overwrite(store, manifest_name(), of_before)
    old = find(store, "sft", KEY)
    assert old is not None
    assert old.digest != artifact.digest
    assert (fetch(store, old, tmp_path / "cache") / "model.safetensors").read_bytes() == data


def test_an_artifact_that_is_gone_is_named(tmp_path: Path, output: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    artifact = published(store, output)
    Path(tmp_path, "store", manifest_name()).unlink()
    with pytest.raises(InputError, match=r"is gone.*Run the stage sft again"):
        fetch(store, artifact, tmp_path / "cache")


def test_small_files_are_read_in_the_patterns_order(store: Store, output: Path) -> None:
    artifact = published(store, output)
    files = read_files(store, artifact, "empty", "*.json")
    assert list(files.items()) == [("empty", b""), ("config.json", (output / "config.json").read_bytes())]


def test_a_stage_that_left_nothing_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(InputError, match="left no files"):
        published(store_at(f"file://{tmp_path}/store"), tmp_path / "output")


def test_the_digest_is_of_kind_and_content_alone(tmp_path: Path, output: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    same = published(store, output, "1" * 32).digest
    assert published(store, output, "2" * 32, config={"lr": 2.0}).digest == same
    assert published(store, output, "3" * 32, kind="adapter").digest != same
    (output / "empty").rename(output / "renamed")
    assert published(store, output, "4" * 32).digest != same


def test_the_key_depends_on_each_of_its_parts() -> None:
    one = Artifact(uri="s3://a/b", kind="data", digest="1")
    parts: list[tuple[str, Mapping[str, Any], Mapping[str, Artifact], str]] = [
        ("sft", {"a": 1}, {"data": one}, "v"),
        ("ppo", {"a": 1}, {"data": one}, "v"),
        ("sft", {"a": 2}, {"data": one}, "v"),
        ("sft", {"a": 1}, {"model": one}, "v"),
        ("sft", {"a": 1}, {"data": one.model_copy(update={"digest": "2"})}, "v"),
        ("sft", {"a": 1}, {"data": one}, "w"),
    ]
    assert len({artifact_key(*part) for part in parts}) == len(parts)
    moved = one.model_copy(update={"uri": "file:///elsewhere"})
    assert artifact_key("sft", {"b": 2, "a": 1}, {"data": moved}, "v") == artifact_key(
        "sft", {"a": 1, "b": 2}, {"data": one}, "v"
    )


def test_what_is_in_no_store_has_no_files_to_read(store: Store) -> None:
    assert read_files(store, Artifact(uri="hf://a/b@c", kind="model", digest="d" * 64), "*") == {}


def test_a_stages_code_version_counts_its_own_folder_and_the_shared_modules_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "tasks"
    shutil.copytree(Path(artifacts.__file__).parent, copy)
    monkeypatch.setattr(artifacts, "__file__", str(copy / "artifacts.py"))
    before = {stage: code_version.__wrapped__(stage) for stage in ("sft", "ppo")}
    both = {"sft", "ppo"}
    for name, changed in [
        ("runner.py", set()),
        ("storage/transfer.py", set()),
        ("retention/runs.py", set()),
        ("ppo/train.py", {"ppo"}),
        ("data.py", both),
        ("models/modeling.py", both),
        ("rewards/rules.py", both),
        ("actor_critic/models.py", both),
    ]:
        original = (copy / name).read_text()
        (copy / name).write_text(original + "# changed")
        after = {stage: code_version.__wrapped__(stage) for stage in before}
        assert {stage for stage in before if after[stage] != before[stage]} == changed
        (copy / name).write_text(original)


def test_what_is_stored_is_listed_replaced_and_deleted(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(minutes=5)
    names = [f"artifacts/sft/{number:02}" for number in range(12)]
    for name in (*names, "artifacts/ppo/x"):
        store.create(name, b"first")
    store.write(names[0], b"another")
    listed = list(store.files("artifacts/sft/0"))
    assert [(file.name, file.size) for file in listed] == [(names[0], 7), *((name, 5) for name in names[1:10])]
    assert all(before < file.modified < datetime.now(UTC) + timedelta(minutes=5) for file in listed)
    store.delete([*names, "artifacts/sft/never-there"])
    assert [file.name for file in store.files("artifacts/")] == ["artifacts/ppo/x"]
    assert store.read(names[0]) is None


def test_an_unfinished_write_is_listed_until_it_is_aborted(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(2 * CHUNK))
    entry = describe_file(tmp_path / "big", CHUNK)
    upload = store.begin("artifacts/sft/big", entry, CHUNK)
    assert upload is not None
    upload.send(0, 0, Content.of((tmp_path / "big").read_bytes()[:CHUNK]))
    assert [file.name for file in store.files("artifacts/")] == []
    [unfinished] = store.unfinished("artifacts/sft/")
    assert unfinished.name == "artifacts/sft/big"
    store.abort(unfinished)
    store.abort(unfinished)
    assert list(store.unfinished("")) == []

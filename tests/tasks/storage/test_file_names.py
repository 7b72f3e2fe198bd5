"""Names in a manifest, links in a folder: nothing is written or read outside of the folder that it belongs to."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import DamagedArtifact, fetch, publish, read_files, store_at
from tasks.errors import InputError
from tasks.storage.file_names import fault_of_names, is_safe_name
from tasks.storage.manifest import Artifact, sha256_of

KEY = "0123456789abcdef" * 2


OUTSIDE = ("../up", "/etc/passwd", "a/../../b", "..", "a/..")
NOT_PLAIN = ("a//b", ".", "", "a/./b")
ON_WINDOWS = ("a\\b", "..\\up", "C:\\Windows\\x", "C:x", "\\\\server\\share")
HIDING = ("line\nbreak", "nul\0", "esc\x1b[2J", "right\u202eleft", "tab\t")


@pytest.mark.parametrize("name", [*OUTSIDE, *NOT_PLAIN, *ON_WINDOWS, *HIDING])
def test_a_name_that_leaves_the_folder_or_hides_is_not_safe(name: str) -> None:
    assert not is_safe_name(name)
    assert fault_of_names(["fine", name]) is not None


@pytest.mark.parametrize("names", [["a", "b/c", "b/d.safetensors"], ["Ümlaut.json", "日本/x", "...", "a b"], []])
def test_plain_names_are_safe(names: list[str]) -> None:
    assert all(is_safe_name(name) for name in names)
    assert fault_of_names(names) is None


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["README.md", "readme.md"], "'README.md' and 'readme.md' are the same"),
        (["a/x", "A/X"], "are the same"),
        (["stra\u00dfe", "STRASSE"], "are the same"),
        (["caf\u00e9", "cafe\u0301"], "are the same"),
        (["model", "model/weights"], "'model' is a file and also the folder of 'model/weights'"),
        (["a/b/c", "a"], "'a' is a file and also the folder of 'a/b/c'"),
        (["Model/weights", "model"], "'model' is a file and also the folder of 'Model/weights'"),
    ],
)
def test_names_that_would_overwrite_each_other_are_a_fault(names: list[str], fault: str) -> None:
    assert fault in str(fault_of_names(names))
    assert fault_of_names(names[:1]) is None


def published(tmp_path: Path) -> tuple[Artifact, Path]:
    """An artifact of one file, and where its manifest lies."""
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "file").write_text("content")
    store = store_at(f"file://{tmp_path}/store")
    artifact = publish(store, folder, stage="sft", key=KEY, kind="model", config={}, inputs={})
    return artifact, tmp_path / "store/artifacts/sft" / KEY / "manifest.json"


def forge(manifest: Path, **changes: Any) -> None:
    """Change the manifest as somebody would who knows how to make its checksum."""
    fields = json.loads(manifest.read_text()) | changes
    fields.pop("checksum")
    manifest.write_text(json.dumps(fields | {"checksum": sha256_of(fields)}))


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["../../../file"], "leaves the artifact's folder"),
        (["..\\file"], "leaves the artifact's folder"),
        (["file", "FILE"], "are the same"),
        (["file", "file/x"], "is a file and also the folder"),
    ],
)
def test_a_forged_manifest_writes_nothing(names: list[str], fault: str, tmp_path: Path) -> None:
    artifact, manifest = published(tmp_path)
    [entry] = json.loads(manifest.read_text())["files"].values()
    forge(manifest, files=dict.fromkeys(names, entry))
    with pytest.raises(DamagedArtifact, match=fault):
        fetch(store_at(f"file://{tmp_path}/store"), artifact, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("attempt", ["../../../../secret", "..", "/etc", "a/b"])
def test_a_forged_attempt_reads_nothing_outside(attempt: str, tmp_path: Path) -> None:
    artifact, manifest = published(tmp_path)
    forge(manifest, attempt=attempt)
    with pytest.raises(DamagedArtifact, match="it is no manifest of this version"):
        read_files(store_at(f"file://{tmp_path}/store"), artifact, "*")


def test_a_manifest_of_another_place_is_not_taken(tmp_path: Path) -> None:
    _, manifest = published(tmp_path)
    other = manifest.parent.with_name("f" * 32) / manifest.name
    other.parent.mkdir()
    other.write_text(manifest.read_text())
    with pytest.raises(DamagedArtifact, match=f"it is the one of artifacts/sft/{KEY}"):
        publish_again(tmp_path, "f" * 32)


def publish_again(tmp_path: Path, key: str) -> Artifact:
    store = store_at(f"file://{tmp_path}/store")
    return publish(store, tmp_path / "output", stage="sft", key=key, kind="model", config={}, inputs={})


@pytest.mark.parametrize("link", ["file", "folder/file", "folder"])
def test_a_link_that_leads_outside_is_not_published(link: str, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    output = tmp_path / "output"
    (output / link).parent.mkdir(parents=True)
    (output / link).symlink_to(tmp_path / "secret" if link == "folder" else tmp_path / "secret/file")
    with pytest.raises(InputError, match=f"cannot be published: by a link it is {tmp_path}/secret/file"):
        publish_again(tmp_path, KEY)
    assert not list((tmp_path / "store").rglob("file"))


def test_a_link_inside_the_folder_is_published_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "weights").write_text("1")
    (tmp_path / "output" / "latest").symlink_to("weights")
    artifact = publish_again(tmp_path, KEY)
    fetched = fetch(store_at(f"file://{tmp_path}/store"), artifact, tmp_path / "cache")
    assert (fetched / "latest").read_text() == "1"
    assert not (fetched / "latest").is_symlink()


def test_names_that_clash_are_not_published(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    for name in ("README.md", "readme.md"):
        (tmp_path / "output" / name).write_text(name)
    with pytest.raises(InputError, match=r"output cannot be published: the file names 'README\.md' and 'readme\.md'"):
        publish_again(tmp_path, KEY)


@pytest.mark.parametrize("place", ["{digest}", "{digest}.partial", "{digest}.partial/file"])
def test_nothing_is_written_through_a_link_in_the_cache(place: str, tmp_path: Path) -> None:
    artifact, _ = published(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    link = tmp_path / "cache" / place.format(digest=artifact.digest)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "mine" if place.endswith("file") else outside)
    with pytest.raises(InputError, match="is a symbolic link, and none of ours"):
        fetch(store_at(f"file://{tmp_path}/store"), artifact, tmp_path / "cache")
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("mine", "mine")]

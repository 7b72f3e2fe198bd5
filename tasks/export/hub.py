"""The export on a hub: sent as a pull request, downloaded again, compared and asked, and only then merged.

What a repository held before stays what its users get until the new files are there and proved.
"""

import fnmatch
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from tasks.errors import InputError
from tasks.export.config import HubForm
from tasks.export.package import try_package
from tasks.export.trial import Exam
from tasks.models.model_files import write_json

TOKEN = "HF_TOKEN"
RECORD = "hub.json"
NOT_SENT = (RECORD, "metrics.jsonl", "log.txt", "error.json")  # what a stage leaves beside its result
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.gguf")
REFUSED = (400, 401, 402, 403, 404)


@dataclass(frozen=True)
class Pushed:
    """Where an export went."""

    repository: str
    commit: str
    url: str


def read_token() -> str:
    """The token in the environment; raises InputError where there is none. No other place is looked into."""
    token = os.environ.get(TOKEN)
    if not token:
        raise InputError(f"export.hub: ${TOKEN} is not set. Set it to a token that may write to the repository.")
    return token


def push(form: HubForm, folder: Path, exam: Exam, tolerance: float) -> Pushed:
    """Bring the finished export in `folder` to the hub, and write hub.json beside it.

    Raises InputError for what the hub refuses, ModelsDiffer or OSError where it does not give back what was sent: the
    pull request then stays open, and what users get stays as it was.
    """
    api = HfApi(endpoint=form.endpoint, token=read_token())
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if name not in NOT_SENT]
    try:
        with _online():
            commit = _propose(api, form, folder, names)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-pushed-") as copy:
                _download(api, form, commit.oid, names, Path(copy))
                _require_equal(folder, Path(copy), names)
                try_package(Path(copy), exam, tolerance)
            if commit.pr_num is not None:
                api.merge_pull_request(form.repository, commit.pr_num)
    except HfHubHTTPError as error:
        if error.response.status_code not in REFUSED:
            raise
        raise InputError(
            f"export.hub: {form.endpoint} refuses {form.repository} ({str(error).strip().splitlines()[0]}). Check the "
            f"name, and that the token in ${TOKEN} may write there."
        ) from error
    pushed = Pushed(form.repository, commit.oid, commit.pr_url or commit.commit_url)
    write_json(folder / RECORD, vars(pushed))
    return pushed


@contextmanager
def _online() -> Iterator[None]:
    """The stages keep huggingface_hub from the network; inside the block it may use it."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _propose(api: HfApi, form: HubForm, folder: Path, names: list[str]) -> CommitInfo:
    """One commit with all files, in which weights that an earlier export left go; nothing is merged."""
    api.create_repo(form.repository, private=form.private, exist_ok=True)
    there = api.list_repo_files(form.repository)
    old = [name for name in there if name not in names and any(fnmatch.fnmatch(name, weights) for weights in WEIGHTS)]
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    deletions = [CommitOperationDelete(path_in_repo=name) for name in old]
    return api.create_commit(
        form.repository, [*deletions, *additions], commit_message=f"Export {folder.name}", create_pr=True
    )


def _download(api: HfApi, form: HubForm, revision: str, names: list[str], folder: Path) -> None:
    for name in names:
        api.hf_hub_download(form.repository, name, revision=revision, local_dir=folder)


def _require_equal(sent: Path, received: Path, names: list[str]) -> None:
    """Raise OSError, naming the files, unless all have the bytes that were sent."""
    differing = [name for name in names if not _same_bytes(sent / name, received / name)]
    if differing:
        raise OSError(f"The hub gives back other bits than were sent: {', '.join(differing)}. Nothing was merged.")


def _same_bytes(first: Path, second: Path) -> bool:
    with first.open("rb") as one, second.open("rb") as other:
        while True:
            left, right = one.read(2**20), other.read(2**20)
            if left != right:
                return False
            if not left:
                return True

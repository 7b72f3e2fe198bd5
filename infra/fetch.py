"""Bring an artifact from the store into a folder, every chunk verified.

python -m infra.fetch s3://alignment/artifacts/export/8d3... my-model
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra import local_s3
from tasks.artifacts import fetch, import_external, store_at
from tasks.errors import InputError


def main() -> int:
    """The exit status: 0 when the folder is there, 2 when the artifact or the folder was refused."""
    parser = argparse.ArgumentParser(description="Bring an artifact into a folder.")
    parser.add_argument("uri", help="the artifact's address, as the run's summary shows it")
    parser.add_argument("folder", type=Path, help="where it shall stand; must not exist")
    arguments = parser.parse_args()
    try:
        bring(arguments.uri, arguments.folder)
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


def bring(uri: str, folder: Path) -> None:
    """Make `folder` of the artifact's files; it appears whole or not at all."""
    if folder.exists():
        raise InputError(f"{folder} exists already. Name a folder that does not.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with local_server(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as partial:
        whole = fetch(store_at(uri.partition("/artifacts/")[0]), import_external(uri), Path(partial))
        shutil.move(whole, folder)
    print(f"{uri} is in {folder}")


@contextlib.contextmanager
def local_server() -> Iterator[None]:
    """The local S3 server for the length of the block, unless the environment names another store."""
    with contextlib.ExitStack() as servers:
        if local_s3.STORE_VARIABLE not in os.environ:
            os.environ.update(servers.enter_context(local_s3.start(local_s3.FOLDER)).environment)
        yield


if __name__ == "__main__":
    sys.exit(main())

"""Try what the server of a store can do, and say what follows from it.

python -m infra.check_store [s3://bucket/prefix]
"""

import argparse
import os
import sys

from infra.fetch import local_server
from infra.local_s3 import STORE, STORE_VARIABLE
from tasks.errors import InputError
from tasks.storage.stores import store_at


def main() -> int:
    """The exit status: 0 when the store can be used, 2 when it was refused."""
    parser = argparse.ArgumentParser(description="Try what the server of a store can do.")
    parser.add_argument("uri", nargs="?", help=f"the store; without it ${STORE_VARIABLE}, else the local S3")
    arguments = parser.parse_args()
    try:
        with local_server():
            print(report(arguments.uri or os.environ.get(STORE_VARIABLE) or STORE))
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


def report(uri: str) -> str:
    """What was found, tried anew, in lines."""
    from tasks.storage.s3 import S3Store

    store = store_at(uri)
    if not isinstance(store, S3Store):
        return f"{store.uri} can be written."
    found = store.abilities(anew=True)
    lines = [f"{store.uri} at {found.endpoint} can be read, written, listed and deleted from. Server: {found.server}."]
    lines += [f"{name}: {there}; {follows}." for name, there, follows in found.consequences()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

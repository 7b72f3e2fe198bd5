"""Publishes or fetches one artifact as a process of its own, and says what it took.

python -m tests.chaos.mover publish URI FOLDER KEY
python -m tests.chaos.mover fetch URI FOLDER KEY
"""

import argparse
import json
import resource
import time
from pathlib import Path

from tasks.artifacts import Artifact, fetch, find, publish, store_at

STAGE = "sft"


def main() -> None:
    """Print the artifact's digest, where it lies here, seconds, and this process's peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["publish", "fetch"])
    parser.add_argument("uri")
    parser.add_argument("folder", type=Path)
    parser.add_argument("key")
    parser.add_argument("--chunk-bytes", type=int, default=16 * 2**20)
    arguments = parser.parse_args()
    started = time.monotonic()
    store = store_at(arguments.uri)
    place = arguments.folder
    if arguments.action == "publish":
        artifact: Artifact | None = publish(
            store, place, stage=STAGE, key=arguments.key, kind="model", config={}, inputs={},
            chunk_bytes=arguments.chunk_bytes,
        )  # fmt: skip
    else:
        artifact = find(store, STAGE, arguments.key)
        assert artifact is not None
        place = fetch(store, artifact, place)
    assert artifact is not None
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = {"seconds": time.monotonic() - started, "peak_bytes": peak_bytes}
    print(json.dumps({"digest": artifact.digest, "place": str(place), **taken}))


if __name__ == "__main__":
    main()

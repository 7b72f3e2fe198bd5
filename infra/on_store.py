"""Run a command of tasks/ on the store that runs here use: what the environment names, else the local S3 server.

python -m infra.on_store tasks.sweep --keep-runs 3
python -m infra.on_store tasks.lineage s3://alignment/artifacts/export/8d3...
"""

import importlib
import os
import sys

from infra import local_s3
from infra.fetch import local_server


def main() -> int:
    """The command's exit status."""
    module, *arguments = sys.argv[1:]
    with local_server():
        os.environ.setdefault(local_s3.STORE_VARIABLE, local_s3.STORE)
        status: int = importlib.import_module(module).main(arguments)
        return status


if __name__ == "__main__":
    sys.exit(main())

"""Run a command of tasks/ on the store that runs here use: what the environment names, else the local S3 server.

python -m infra.on_store tasks.sweep --keep-runs 3
python -m infra.on_store tasks.report
python -m infra.on_store tasks.lineage s3://alignment/artifacts/export/8d3...
"""

import importlib
import os
import sys

from infra import local_s3
from infra.fetch import local_server


def main() -> int:
    """The command's exit status."""
    name, *arguments = sys.argv[1:]
    with local_server():
        os.environ.setdefault(local_s3.STORE_VARIABLE, local_s3.STORE)
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{name}.__main__")
        status: int = module.main(arguments)
        return status


if __name__ == "__main__":
    sys.exit(main())

"""The long form of the proof: what survives kills, faults, full disks, other machines, each other, and size.

python -m tests.chaos --seed 1 --output chaos.json
python -m tests.chaos --seed 7 --part kills --kills 24
python -m tests.chaos.report chaos.json > docs/results/chaos.md

Each chain's result of the kills is kept in chaos.kills.jsonl as it ends: the same command, after an interruption, goes
on with the chains that are missing.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from infra.provenance import provenance
from tests.chaos.launches import LAUNCHES
from tests.chaos.matrix import MIXED
from tests.chaos.parts import PARTS, Sizes, run_part


def main() -> int:
    """The exit status: 0 when nothing was violated."""
    arguments = _parse()
    started = time.monotonic()
    sizes = Sizes(
        arguments.seed,
        arguments.kills,
        arguments.faults,
        arguments.folder,
        _clock(started),
        num_lanes=arguments.lanes,
        kills_per_chain=arguments.kills_per_chain,
        launches=[LAUNCHES[name] for name in arguments.launch or ()] or MIXED,
        kept=arguments.output.with_suffix(".kills.jsonl"),
    )
    command = "python -m tests.chaos " + shlex.join(sys.argv[1:])
    measured = {"command": command, "provenance": provenance(), "seed": arguments.seed, "parts": []}
    for name in arguments.part or PARTS:
        sizes.say(f"--- {name}, seed {arguments.seed}")
        result = run_part(name, sizes)
        measured["parts"].append(result.as_json())
        measured["seconds"] = time.monotonic() - started
        arguments.output.write_text(json.dumps(measured, indent=1) + "\n")
        sizes.say(f"--- {name}: {result.skipped or f'{len(result.violations)} violations'}")
        for violation in result.violations:
            print(violation, flush=True)
    return int(any(part["violations"] for part in measured["parts"]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="decides every moment, target and fault")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="repeatable; default: all")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=int, default=10_000, help="faulted requests, over both servers and TLS")
    parser.add_argument("--kills-per-chain", type=int, default=12)
    parser.add_argument("--launch", action="append", choices=list(LAUNCHES), help="repeatable; default: a mixture")
    parser.add_argument("--lanes", type=int, default=2, help="chains at a time in the kill matrix")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="needs 25 GB for `large`")
    parser.add_argument("--output", type=Path, default=Path("chaos.json"))
    return parser.parse_args()


def _clock(started: float) -> Callable[[str], None]:
    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())

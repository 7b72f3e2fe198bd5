"""The page of docs/results from what `python -m tests.chaos` wrote; several files make one page.

python -m tests.chaos.report chaos.json > docs/results/chaos.md
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.markdown import table


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the Markdown of chaos results.")
    parser.add_argument("measured", type=Path, nargs="+")
    print(as_markdown([json.loads(path.read_text()) for path in parser.parse_args().measured]))


def as_markdown(measured: Sequence[Mapping[str, Any]]) -> str:
    """The page: for each command how it was run, what each part did, and every violation."""
    return "\n\n".join(
        ["# What kills, faults and full disks did", *(part for one in measured for part in _command(one))]
    )


def _command(measured: Mapping[str, Any]) -> list[str]:
    rows = [[part["part"], f"{part['seconds']:.0f}", _outcome(part), _summary(part)] for part in measured["parts"]]
    sections = [
        f"`{measured['command']}`: seed {measured['seed']}, {measured['seconds']:.0f} s.",
        measured["provenance"],
    ]
    sections.append(table(["part", "seconds", "violations", "what was done"], rows))
    for part in measured["parts"]:
        sections += _details(part)
    return sections


def _outcome(part: Mapping[str, Any]) -> str:
    return f"not done: {part['skipped']}" if part["skipped"] else str(len(part["violations"]))


def _summary(part: Mapping[str, Any]) -> str:
    figures = part["figures"]
    if part["part"] == "kills":
        chains, slowest = len(figures["chains"]), figures["slowest_end_s"]
        return f"{figures['kills']} kills over {chains} chains; the last process ended {slowest:.1f} s after its kill"
    if part["part"] == "faults":
        tallies = figures["transfers"]
        faulted, requests = (sum(_count(tally)[index] for tally in tallies) for index in (0, 1))
        return f"{faulted} of {requests} requests met a fault"
    if part["part"] == "large" and figures:
        sides = (f"{name} {figures[name]['peak_bytes'] / 2**20:.0f} MiB" for name in ("publish", "fetch"))
        return f"{figures['size_bytes'] / 2**30:.2f} GiB; peak memory: {', '.join(sides)}"
    return ", ".join(f"{name}: {value}" for name, value in figures.items())


def _count(tally: Mapping[str, Any]) -> tuple[int, int]:
    return sum(tally["faults"].values()), tally["requests"]


def _details(part: Mapping[str, Any]) -> list[str]:
    details = []
    if part["part"] == "kills":
        targets = [[target, number, str(count)] for target, number, count in part["figures"]["targets"]]
        details = ["## Kills", table(["target", "signal", "kills"], targets)]
        for name, counts in (("stage", part["figures"]["stages"]), ("started as", part["figures"]["launches"])):
            details.append(table([name, "kills"], [[hit, str(count)] for hit, count in counts.items()]))
    if part["part"] == "faults":
        details = ["## Faults", _faults(part["figures"]["transfers"])]
    return [*details, *(f"- violated: {violation}" for violation in part["violations"])]


def _faults(tallies: Sequence[Mapping[str, Any]]) -> str:
    """A column for each server, in the clear and over TLS."""
    kinds = sorted({kind for tally in tallies for kind in tally["faults"]})
    rows = [[kind, *(str(tally["faults"].get(kind, 0)) for tally in tallies)] for kind in kinds]
    rows += [
        ["**" + name + "**", *(str(value(tally)) for tally in tallies)]
        for name, value in (
            ("faulted requests", lambda tally: _count(tally)[0]),
            ("requests", lambda tally: tally["requests"]),
            ("published", lambda tally: tally["published"]),
            ("fetched", lambda tally: tally["fetched"]),
            ("given up, whole when run again", lambda tally: len(tally["given_up"])),
            ("violations", lambda tally: len(tally["violations"])),
        )
    ]
    heads = [f"{tally['server']}{', TLS' if tally['tls'] else ''}" for tally in tallies]
    return table(["fault", *heads], rows)


if __name__ == "__main__":
    main()

"""The lineage as a picture: a row for each artifact, and a line from each to every artifact that was made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.report.facts import RunFacts

ROW_HEIGHT, LANE_WIDTH, MARGIN, TEXT_WIDTH = 46, 18, 14, 330
NUM_COLOURS = 6
SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Row:
    """One artifact: what it is called, what is told of it, and the rows that it was made of."""

    name: str
    detail: str
    made_here: bool
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A row's place in the picture."""

    row: Row
    x: float
    y: float
    colour: int


@dataclass(frozen=True)
class Edge:
    """The path of an SVG line from an artifact to one that was made of it."""

    path: str
    colour: int


@dataclass(frozen=True)
class Picture:
    """Everything that is drawn, and the size."""

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    text_x: float
    width: float
    height: float


def rows(facts: RunFacts) -> list[Row]:
    """The run's artifacts in the order in which they were made, each thing from outside before its first use."""
    names = _names_of_inputs(facts)
    found: list[Row] = []
    places: dict[str, int] = {}
    for stage in facts.stages:
        inputs = stage.origin.get("inputs") or {}
        for digest in inputs.values():
            if digest not in places:
                places[digest] = len(found)
                found.append(Row(names[digest], f"{digest[:SHOWN_DIGITS]} · not made by this run", False, ()))
        used = tuple(sorted({places[digest] for digest in inputs.values()}))
        done = "was there already" if stage.run.already_done else "made by this run"
        told = [str(stage.origin.get("kind", "")), stage.digest[:SHOWN_DIGITS], "gone" if stage.gone else done]
        places[stage.digest] = len(found)
        found.append(Row(stage.role, " · ".join(filter(None, told)), not stage.run.already_done, used))
    return found


def picture(found: Sequence[Row]) -> Picture:
    """Where every row and line goes: each artifact has a lane from its own row to that of its last use."""
    last_use = {place: at for at, row in enumerate(found) for place in row.inputs}
    lanes = _lanes(found, last_use)
    nodes = [
        Node(row, _x(lanes[at]), MARGIN + ROW_HEIGHT * at + ROW_HEIGHT / 2, at % NUM_COLOURS + 1)
        for at, row in enumerate(found)
    ]
    edges = [Edge(_path(nodes[start], node), nodes[start].colour) for node in nodes for start in node.row.inputs]
    text_x = _x(max(lanes.values(), default=0)) + LANE_WIDTH
    return Picture(nodes, edges, text_x, text_x + TEXT_WIDTH, 2 * MARGIN + ROW_HEIGHT * len(found))


def in_words(found: Sequence[Row]) -> str:
    """What the picture shows, as one text."""
    told = []
    for row in found:
        used = ", ".join(found[place].name for place in row.inputs)
        told.append(f"{row.name} ({row.detail})" + (f" made of {used}" if used else ""))
    return "; ".join(told)


def _names_of_inputs(facts: RunFacts) -> dict[str, str]:
    """What each input that no stage of the run made is called, by its digest; the first name that it is given."""
    names: dict[str, str] = {}
    for stage in facts.stages:
        for name, digest in (stage.origin.get("inputs") or {}).items():
            names.setdefault(digest, name.replace("_", " "))
    return names


def _lanes(found: Sequence[Row], last_use: Mapping[int, int]) -> dict[int, int]:
    """The lane of each row: the first that is free there; an artifact's last use may go on in its lane."""
    lanes: dict[int, int] = {}
    taken_until: dict[int, int] = {}  # by lane: the row of the last use
    for at in range(len(found)):
        lane = next(lane for lane in range(len(found)) if taken_until.get(lane, -1) <= at)
        lanes[at] = lane
        taken_until[lane] = last_use.get(at, at)
    return lanes


def _x(lane: int) -> float:
    return MARGIN + LANE_WIDTH * lane


def _path(start: Node, end: Node) -> str:
    """Down the artifact's lane, and with a bend into the row that uses it."""
    if start.x == end.x:
        return f"M{start.x},{start.y}V{end.y}"
    bend = end.y - ROW_HEIGHT * 0.7
    return f"M{start.x},{start.y}V{bend}C{start.x},{end.y - 8} {end.x},{bend + 8} {end.x},{end.y}"

"""What an artifact was made of, and what was made of it, from the manifests and run records of its store.

    python -m tasks.lineage s3://bucket/prefix/artifacts/export/8d3... [--config all] [--json]
    python -m tasks.lineage 4c1f --store s3://bucket/prefix          # the beginning of a digest

Backwards to data, settings (those that differ from the defaults), code and library versions; forwards to every use.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tasks.artifacts import ARTIFACT_URI, Artifact
from tasks.config import Config
from tasks.errors import InputError
from tasks.flattening import flattened
from tasks.retention.catalogue import Catalogue, catalogue
from tasks.retention.keys import Key
from tasks.retention.survey import read_runs
from tasks.storage.stores import Store, store_at

MADE_FROM, USED_BY, SEEN = "made from", "used by", "see above"


@dataclass(frozen=True)
class Node:
    """One artifact in a tree of lineage; `inputs` or `uses` are empty where the tree does not go that way."""

    name: str  # the input's name, or the stage's
    digest: str
    uri: str | None = None
    kind: str | None = None
    created: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    code_version: str | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    inputs: tuple["Node", ...] = ()
    uses: tuple["Node", ...] = ()


@dataclass(frozen=True)
class Lineage:
    """All that is known of a store's artifacts: the manifests, and the addresses that runs wrote down by digest."""

    store_uri: str
    catalogue: Catalogue
    addresses: Mapping[str, str]
    whole_config: bool = False

    @cached_property
    def digests(self) -> dict[Key, str]:
        """The digest of each artifact, the oldest first."""
        ordered = sorted(self.catalogue.manifests.items(), key=lambda item: (item[1].created, item[0]))
        return {key: manifest.digest for key, manifest in ordered}

    @cached_property
    def first_keys(self) -> dict[str, Key]:
        """Under which key each content was published first, by digest."""
        return {digest: key for key, digest in reversed(self.digests.items())}

    @cached_property
    def uses(self) -> dict[str, list[Key]]:
        """What was made of each content, by its digest."""
        uses: dict[str, list[Key]] = {}
        for key in self.digests:
            for digest in {*self.catalogue.manifests[key].inputs.values()}:
                uses.setdefault(digest, []).append(key)
        return uses

    def backwards(self, name: str, digest: str, seen: set[str] | None = None) -> Node:
        """The artifact with everything that it was made of; what comes twice is told once."""
        seen = set() if seen is None else seen
        key = self.first_keys.get(digest)
        if key is None:
            return self._outside(name, digest)
        if digest in seen:
            return self._node(name, key, note=SEEN)
        seen.add(digest)
        inputs = self.catalogue.manifests[key].inputs
        return self._node(name, key, inputs=tuple(self.backwards(*each, seen) for each in sorted(inputs.items())))

    def forwards(self, name: str, digest: str, seen: set[str] | None = None) -> tuple[Node, ...]:
        """Everything that was made of the artifact, each with what was made of that."""
        seen = set() if seen is None else seen
        uses = []
        for key in self.uses.get(digest, []):
            known = self.digests[key] in seen
            seen.add(self.digests[key])
            onward = () if known else self.forwards(key.stage, self.digests[key], seen)
            uses.append(self._node(key.stage, key, note=SEEN if known else None, uses=onward))
        return tuple(uses)

    def _node(self, name: str, key: Key, **more: Any) -> Node:
        manifest = self.catalogue.manifests[key]
        config = manifest.config if self.whole_config else changed_options(manifest.stage, manifest.config)
        return Node(
            name=name,
            digest=self.digests[key],
            uri=f"{self.store_uri}/{manifest.folder}",
            kind=manifest.kind,
            created=manifest.created,
            config=config,
            code_version=manifest.code_version,
            libraries=manifest.libraries,
            **more,
        )

    def _outside(self, name: str, digest: str) -> Node:
        uri = self.addresses.get(digest)
        if uri is None:
            note = "not in this store: something outside that no run on record names, or swept"
        else:
            note = "missing: it was deleted" if uri.startswith(f"{self.store_uri}/artifacts/") else "outside"
        return Node(name, digest, uri, note=note)


def lineage_of_store(store: Store, whole_config: bool = False) -> Lineage:
    """What the whole store tells, without the manifests that cannot be read."""
    addresses = {digest: uri for run in read_runs(store) for uri, digest in run.record.artifacts.items()}
    return Lineage(store.uri, catalogue(store), addresses, whole_config)


def tree(lineage: Lineage, digest: str) -> Node:
    """The artifact with both its ways: what it was made of, and what was made of it."""
    node = lineage.backwards("", digest)
    return replace(node, uses=lineage.forwards("", digest))


def tree_of_inputs(store: Store, inputs: Mapping[str, Artifact]) -> str:
    """What a stage's inputs were made of, in lines that depend on nothing but content, settings and versions."""
    lineage, seen = lineage_of_store(store), set[str]()
    outside = {artifact.digest: artifact.uri for artifact in inputs.values()}
    lineage = replace(lineage, addresses={**outside, **lineage.addresses})
    nodes = [lineage.backwards(name, artifact.digest, seen) for name, artifact in sorted(inputs.items())]
    return "\n".join(_branches([_without_dates(node) for node in nodes], {}))


def as_text(node: Node) -> str:
    """The tree in lines, for a terminal, a pipe or a block of code in Markdown."""
    lines = [*_facts(node), *(f"  {library} {version}" for library, version in node.libraries.items())]
    for title, children in ((MADE_FROM, node.inputs), (USED_BY, node.uses)):
        if children:
            lines += ["", title, *_branches(children, node.libraries)]
    return "\n".join(lines)


def changed_options(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The options by dotted name that differ from the stage's defaults, without what is empty in an optional group.

    All of them for a stage that is not known.
    """
    defaults = flattened(_defaults(stage))

    def is_told(name: str, value: Any) -> bool:
        return bool(value != defaults[name] if name in defaults else value is not None and value not in ({}, []))

    return {name: value for name, value in flattened(config).items() if is_told(name, value)}


def _branches(nodes: Sequence[Node], libraries: Mapping[str, str]) -> Iterator[str]:
    for node in nodes:
        last = node is nodes[-1]
        facts = [*_facts(node), *_other_versions(node, libraries)]
        below = [*facts[1:], *_branches((*node.inputs, *node.uses), libraries)]
        yield f"{'└─' if last else '├─'} {facts[0]}"
        yield from (f"{'   ' if last else '│  '}{line}" for line in below)


def _without_dates(node: Node) -> Node:
    return replace(node, created=None, libraries={}, inputs=tuple(map(_without_dates, node.inputs)))


def _facts(node: Node) -> list[str]:
    head = " ".join(filter(None, [node.name, f"({node.kind})" if node.kind else "", node.digest[:12], node.note]))
    lines = [head, f"  {node.uri}"] if node.uri and node.note != SEEN else [head]
    if node.note is None:
        lines.append("  " + ", ".join(filter(None, [node.created, f"code {node.code_version}"])))
        lines += [f"  {name} = {json.dumps(value, ensure_ascii=False)}" for name, value in node.config.items()]
    return lines


def _other_versions(node: Node, libraries: Mapping[str, str]) -> list[str]:
    """The libraries that had another version than in the tree's root."""
    other = {name: version for name, version in node.libraries.items() if libraries and libraries.get(name) != version}
    return [f"  {name} {version}" for name, version in other.items()]


def _defaults(stage: str) -> dict[str, Any]:
    """The options of a stage that is configured with nothing; those that must be given are left out."""
    try:
        module = importlib.import_module(f"tasks.{stage}.config")
    except ModuleNotFoundError:
        return {}
    wanted = f"{stage.replace('_', '')}config"
    [found] = [each for name, each in vars(module).items() if name.lower() == wanted and issubclass(each, Config)]
    given = {name: each.get_default(call_default_factory=True) for name, each in found.model_fields.items()}
    options: dict[str, Any] = found.model_construct(**given).model_dump(mode="json", warnings=False)
    return {name: value for name, value in options.items() if not found.model_fields[name].is_required()}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 if there is no such artifact or the store was refused."""
    arguments = _parse(argv)
    try:
        store_uri, key = _place(arguments)
        lineage = lineage_of_store(store_at(store_uri), arguments.config == "all")
        node = tree(lineage, _digest(lineage, arguments.artifact, key))
    except (InputError, ConnectionError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    for damage in lineage.catalogue.damaged.values():
        print(f"not in the tree: {damage}", file=sys.stderr)
    print(json.dumps(node, default=vars, indent=2) if arguments.json else as_text(node))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show what an artifact was made of, and what was made of it.")
    parser.add_argument("artifact", help="the artifact's address, or the first digits of its digest")
    parser.add_argument("--store", default=os.environ.get("ALIGNMENT_STORE"), help="default: $ALIGNMENT_STORE")
    parser.add_argument("--config", choices=["changed", "all"], default="changed", help="which options are shown")
    parser.add_argument("--json", action="store_true", help="the tree as JSON")
    return parser.parse_args(argv)


def _place(arguments: argparse.Namespace) -> tuple[str, Key | None]:
    """The store to read, and the artifact's key if its address was given."""
    if match := ARTIFACT_URI.fullmatch(arguments.artifact):
        return match["store"], Key(match["stage"], match["key"])
    if not arguments.store:
        raise InputError(
            f"'{arguments.artifact}' is no artifact's address. Give one, or a digest with --store s3://bucket/prefix."
        )
    return arguments.store, None


def _digest(lineage: Lineage, artifact: str, key: Key | None) -> str:
    manifests = lineage.catalogue.manifests
    if key is not None:
        if key not in manifests:
            raise InputError(f"There is no artifact at {artifact}. Check the address.")
        return manifests[key].digest
    known = {manifest.digest for manifest in manifests.values()}
    found = sorted(digest for digest in known if digest.startswith(artifact.lower()))
    if len(found) != 1:
        what = f"{len(found)} artifacts ({', '.join(each[:16] for each in found[:5])})" if found else "no artifact"
        raise InputError(
            f"Expected one artifact whose digest begins with '{artifact}'; there is {what} in {lineage.store_uri}, "
            f"which has {len(known)} in all. Give more of the digest, or the address."
        )
    return found[0]


if __name__ == "__main__":
    sys.exit(main())

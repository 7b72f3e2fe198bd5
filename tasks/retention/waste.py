"""What no finished run needs, and why.

Kept are the artifacts that one of these names, and all that those were made of:
- the newest completed runs of each pipeline, the younger runs in whatever state, and the runs under way;
- champions;
- claims;
- an age: what was published lately is kept even if no run names it.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from tasks.retention.keys import Key
from tasks.retention.survey import KnownRun, Survey
from tasks.storage.manifest import MANIFEST, artifact_folder
from tasks.storage.stores import Stored, Unfinished

REST = {"checkpoints": "checkpoints", "logs": "logs of failures"}


@dataclass(frozen=True)
class Rules:
    """What is kept."""

    keep_runs: int = 5
    """The newest completed runs of each pipeline."""
    keep_age: timedelta = timedelta(days=30)
    """Runs, artifacts and checkpoints younger than this."""
    grace: timedelta = timedelta(hours=24)
    """Whatever is younger than this."""


@dataclass(frozen=True)
class Waste:
    """Files and unfinished writes of one key that nobody needs, and why."""

    key: Key
    reason: str
    files: tuple[Stored, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the files; what unfinished writes take is not known."""
        return sum(file.size for file in self.files)


def waste_in(survey: Survey, rules: Rules) -> list[Waste]:
    """All that can go; raises DamagedArtifact if a manifest cannot be read, for anything may be needed by that one."""
    kept, claimed = kept_keys(survey, rules), survey.claimed
    return [waste for key in survey.keys if key not in claimed for waste in _waste_of(key, key in kept, survey, rules)]


def kept_keys(survey: Survey, rules: Rules) -> set[Key]:
    """The key of every artifact that is kept; raises DamagedArtifact if a manifest cannot be read."""
    for damage in survey.catalogue.damaged.values():
        raise damage
    runs = list(_kept_runs(survey, rules))
    by_digest = survey.catalogue.by_digest()
    digests = survey.pinned_digests.union(*(known.record.artifacts.values() for known in runs))
    ahead = survey.pinned | survey.claimed | _young(survey, max(rules.keep_age, rules.grace))
    ahead = ahead.union(*(known.keys for known in runs), *(by_digest.get(digest, []) for digest in digests))
    kept: set[Key] = set()
    while ahead:
        key = ahead.pop()
        kept.add(key)
        if manifest := survey.catalogue.manifests.get(key):
            parents = {parent for digest in manifest.inputs.values() for parent in by_digest.get(digest, [])}
            ahead |= parents - kept
    return kept


def _kept_runs(survey: Survey, rules: Rules) -> Iterator[KnownRun]:
    by_pipeline = defaultdict(list)
    for known in survey.runs:
        by_pipeline[known.record.pipeline].append(known)
    for runs in by_pipeline.values():
        completed = [known for known in runs if known.record.state == "completed"]
        newest = sorted(completed, key=lambda known: known.record.started, reverse=True)[: rules.keep_runs]
        for known in runs:
            young = survey.now - known.modified < max(rules.keep_age, rules.grace)
            under_way = known.record.ended is None and known.record.run in survey.claims
            if known in newest or young or under_way:
                yield known


def _young(survey: Survey, age: timedelta) -> set[Key]:
    return {key for key in survey.catalogue.manifests if not _is_older(survey, _under(survey, "artifacts", key), age)}


def _waste_of(key: Key, kept: bool, survey: Survey, rules: Rules) -> Iterator[Waste]:
    """What is waste under a key that nobody claims."""
    published = key in survey.catalogue.manifests
    files = _under(survey, "artifacts", key)
    if not published and _is_older(survey, files, rules.grace):
        yield Waste(key, "an attempt that was interrupted: it has no manifest", tuple(files))
    if published and not kept:
        yield Waste(key, "no kept run, champion or kept artifact needs it", tuple(files))
    if published and kept:
        losing = _losing(key, survey)
        if _is_older(survey, losing, rules.grace):
            yield Waste(key, "an attempt that lost to another", tuple(losing))
    for top, what in REST.items():
        rest = _under(survey, top, key)
        age = rules.grace if published else max(rules.keep_age, rules.grace)
        state = "done" if published else "not going on"
        if _is_older(survey, rest, age):
            yield Waste(key, f"{what} of a stage that is {state}", tuple(rest))
    begun = [write for write in survey.unfinished.get(key, []) if survey.now - write.begun >= rules.grace]
    if begun:
        yield Waste(key, "uploads that were never completed", unfinished=tuple(begun))


def _under(survey: Survey, top: str, key: Key) -> list[Stored]:
    return [file for file in survey.files.get(key, []) if file.name.startswith(f"{top}/")]


def _losing(key: Key, survey: Survey) -> list[Stored]:
    """What lies beside the manifest and the attempt that it names."""
    manifest = survey.catalogue.manifests[key]
    own = (f"{artifact_folder(key.stage, key.key)}/{MANIFEST}", f"{manifest.files_folder}/")
    return [file for file in _under(survey, "artifacts", key) if not file.name.startswith(own)]


def _is_older(survey: Survey, files: list[Stored], age: timedelta) -> bool:
    """Whether there are such files, and the newest of them is that old."""
    return bool(files) and all(survey.now - file.modified >= age for file in files)

"""What a run's page tells: the run's record, and what the small files of its artifacts hold. Weights are never read."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.artifacts import Artifact, Store, lineage_of, read_files
from tasks.errors import InputError
from tasks.retention.runs import RunRecord, StageRun
from tasks.tracking import METRICS_FILE, parse_metrics

NUM_READERS = 8
SECOND = "second_reward_model"
REPORT, SAMPLES, CANARIES = "report.json", "samples.json", "canaries.json"
FILES = {
    "evaluate": (REPORT, SAMPLES, CANARIES, "speed.json"),
    "certify": (REPORT, "certificate.png"),
}
FILES_OF_OTHERS = (REPORT, METRICS_FILE)


@dataclass(frozen=True)
class StageFacts:
    """One stage of the run. Where its artifact is gone from the store, `gone` says so, and only the record speaks."""

    run: StageRun
    digest: str
    role: str  # the stage's name, or what its artifact is to others
    origin: Mapping[str, Any] = field(default_factory=dict)  # of the manifest: kind, config, inputs, cost, versions
    files: Mapping[str, bytes] = field(default_factory=dict)
    gone: str = ""

    @property
    def name(self) -> str:
        """The stage's."""
        return self.run.stage

    @property
    def report(self) -> dict[str, Any]:
        """What the stage says of its own work."""
        report: dict[str, Any] = self.json(REPORT, {})
        return report

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One record a step of a training, oldest first."""
        return parse_metrics(self.files.get(METRICS_FILE, b"").decode())

    @property
    def cost(self) -> Mapping[str, float]:
        """Seconds and peak memory of the attempt that made the artifact; empty where they were not written down."""
        return self.origin.get("cost") or {}

    def json(self, name: str, default: Any) -> Any:
        """What the file holds, or `default` where there is none."""
        return json.loads(self.files[name]) if name in self.files else default


@dataclass(frozen=True)
class RunFacts:
    """A run with all its stages, in the order in which they came."""

    record: RunRecord
    stages: Sequence[StageFacts]

    def stage(self, role: str) -> StageFacts | None:
        """The last stage in that role, which is the one that counts where a stage was repeated."""
        return next((stage for stage in reversed(self.stages) if stage.role == role), None)


def gather(store: Store, record: RunRecord) -> RunFacts:
    """All that is told of the run; what is gone or damaged is told as such."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        stages = list(pool.map(lambda run: _facts(store, run, record.artifacts[run.uri]), record.stages))
    inputs = [pair for stage in stages for pair in (stage.origin.get("inputs") or {}).items()]
    seconds = {digest for name, digest in inputs if name == SECOND} - {
        digest for name, digest in inputs if name == "reward_model"
    }
    return RunFacts(record, [replace(stage, role=SECOND) if stage.digest in seconds else stage for stage in stages])


def _facts(store: Store, run: StageRun, digest: str) -> StageFacts:
    folder = run.uri.partition("/artifacts/")[2]  # the store may have moved since
    artifact = Artifact(uri=f"{store.uri}/artifacts/{folder}", kind="", digest=digest)
    try:
        origin = lineage_of(store, artifact)
        files = read_files(store, artifact, *FILES.get(run.stage, FILES_OF_OTHERS))
    except InputError as error:
        return StageFacts(run, digest, run.stage, gone=str(error))
    return StageFacts(run, digest, run.stage, origin, files)

"""What stands between a model and its users, as Prefect tasks: the gate, and the champion's pointer."""

from collections.abc import Collection
from typing import Any, cast

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from tasks import champion as champions
from tasks.artifacts import Artifact
from tasks.champion import Champion, numbers_in
from tasks.display import read_report
from tasks.gate import GateConfig, judge
from tasks.rules import FAILED, Verdict, as_markdown, as_text, is_open
from tasks.runner import Workplace
from tasks.stages import ALREADY_DONE

FAILED_BY_GATE = "FailedByGate"
PASSED = "Passed"


class FailedByGate(Exception):
    """The model is not let out; the message holds the table of the rules that failed."""

    def __init__(self, verdicts: Collection[Verdict], champion_uri: str | None) -> None:
        failed = [verdict for verdict in verdicts if verdict.verdict == FAILED]
        stays = "there is still no champion" if champion_uri is None else f"{champion_uri} stays the champion"
        count = f"{len(failed)} of {len(verdicts)} rules of the gate failed"
        super().__init__(f"{count}; nothing was exported, {stays}.\n{as_text(failed)}")

    def state(self) -> State[Any]:
        """What the run ends as."""
        return Failed(name=FAILED_BY_GATE, message=str(self))


def gate(
    config: GateConfig, metrics: Collection[str], evaluation: Artifact, champion: Champion | None, place: Workplace
) -> list[Verdict]:
    """The verdict of every rule, shown as a table in the UI; raises FailedByGate if one failed.

    `metrics` are the names of evaluate.metrics, `champion` is who stays the champion then.
    """
    stays = None if champion is None else champion.uri
    state = _gate(config, metrics, evaluation, stays, place, return_state=True)
    return cast(list[Verdict], state.result())


@task(name="gate", cache_policy=NO_CACHE)
def _gate(
    config: GateConfig, metrics: Collection[str], evaluation: Artifact, champion_uri: str | None, place: Workplace
) -> State[Any]:
    report = read_report(evaluation, place)
    verdicts = judge(config, metrics, report)
    if place.run is not None:
        place.run.write({"verdicts": verdicts, "figures": numbers_in(report)})
    create_table_artifact(table=[verdict.model_dump() for verdict in verdicts], key="gate-rules")
    create_markdown_artifact(as_markdown(verdicts), key="gate-report", description=f"`{evaluation.uri}`")
    if not is_open(verdicts):
        refusal = FailedByGate(verdicts, champion_uri)
        return Failed(name=FAILED_BY_GATE, message=str(refusal), data=refusal)
    return Completed(name=PASSED, message=as_text(verdicts), data=verdicts)


def crown(
    pipeline: str, export: Artifact, model: Artifact, rival: Champion | None, evaluation: Artifact, place: Workplace
) -> bool:
    """Make `export` of `model` the champion in the place of `rival`; False if another run's became it meanwhile."""
    state = _crown(pipeline, export, model, rival, evaluation, place, return_state=True)
    return cast(bool, state.result())


@task(name="champion", retries=2, retry_delay_seconds=[10, 60], cache_policy=NO_CACHE)
def _crown(
    pipeline: str, export: Artifact, model: Artifact, rival: Champion | None, evaluation: Artifact, place: Workplace
) -> State[Any]:
    figures = read_report(evaluation, place)
    run = f"{flow_run.name} ({flow_run.id})"
    try:
        moved = champions.move(place.store, pipeline, export=export, model=model, rival=rival, run=run, figures=figures)
    except champions.ChampionChanged as change:
        return Completed(name="Overtaken", message=f"{change}: the evaluation is repeated against it", data=False)
    if place.run is not None:
        place.run.write({"champion": export.uri})
    name = champions.pointer_name(pipeline)
    message = f"{place.store.uri}/{name} {'names' if moved else 'already named'} {export.uri}"
    return Completed(name="Completed" if moved else ALREADY_DONE, message=message, data=True)

"""What stands between a reward model and PPO, as a Prefect task: the verdict of its certificate."""

from collections.abc import Collection
from typing import Any, cast

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State

from tasks.artifacts import Artifact
from tasks.display import read_report
from tasks.release import PASSED
from tasks.rules import FAILED, Verdict, as_text, is_open
from tasks.runner import Workplace

FAILED_BY_CERTIFICATE = "FailedByCertificate"


class FailedByCertificate(Exception):
    """PPO must not follow the reward model; the message holds the thresholds that failed, and how to override them."""

    def __init__(self, verdicts: Collection[Verdict], certificate_uri: str) -> None:
        failed = [verdict for verdict in verdicts if verdict.verdict == FAILED]
        names = ", ".join(verdict.measures for verdict in failed)
        super().__init__(
            f"{len(failed)} of {len(verdicts)} thresholds of the reward model's certificate failed; PPO was not "
            f"started.\n{as_text(failed)}\nTo go on all the same set certify.accept: [{names}], which the lineage "
            f"keeps, or move the bounds, which have the same names under certify. The certificate: {certificate_uri}"
        )

    def state(self) -> State[Any]:
        """What the run ends as."""
        return Failed(name=FAILED_BY_CERTIFICATE, message=str(self))


def require_open(certificate: Artifact, place: Workplace) -> list[Verdict]:
    """The verdict of every threshold, shown as a table in the UI; raises FailedByCertificate if one failed."""
    return cast(list[Verdict], _certificate(certificate, place, return_state=True).result())


@task(name="certificate", cache_policy=NO_CACHE)
def _certificate(certificate: Artifact, place: Workplace) -> State[Any]:
    verdicts = [Verdict.model_validate(one) for one in read_report(certificate, place)["verdicts"]]
    if place.run is not None:
        place.run.write({"certificate": verdicts})
    create_table_artifact(table=[verdict.model_dump() for verdict in verdicts], key="certificate-thresholds")
    if not is_open(verdicts):
        refusal = FailedByCertificate(verdicts, certificate.uri)
        return Failed(name=FAILED_BY_CERTIFICATE, message=str(refusal), data=refusal)
    return Completed(name=PASSED, message=as_text(verdicts), data=verdicts)

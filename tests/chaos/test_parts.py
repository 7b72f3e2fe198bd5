"""The short form: a few kills and faults of each sort on real servers. The long form is `make chaos`."""

from pathlib import Path

import pytest

from tests.chaos import disk, machines
from tests.chaos.launches import RunnerAlone
from tests.chaos.parts import Sizes, run_part

pytestmark = pytest.mark.slow


@pytest.fixture
def sizes(tmp_path: Path) -> Sizes:
    alone = (RunnerAlone,)
    return Sizes(1, 4, 240, folder=tmp_path, say=print, kills_per_chain=6, launches=alone, until="sft")


def test_a_chain_survives_kills(sizes: Sizes) -> None:
    result = run_part("kills", sizes)
    assert result.violations == []
    assert result.figures["kills"] >= 4


def test_no_wrong_byte_comes_through_faults(sizes: Sizes) -> None:
    result = run_part("faults", sizes)
    assert result.violations == []
    assert sum(sum(tally["faults"].values()) for tally in result.figures["transfers"]) >= 240


@pytest.mark.skipif(disk.why_not() is not None, reason=str(disk.why_not()))
def test_a_full_disk_is_named_and_loses_nothing(sizes: Sizes) -> None:
    assert run_part("disk", sizes).violations == []


@pytest.mark.skipif(machines.why_not() is not None, reason=str(machines.why_not()))
def test_another_machine_sends_only_what_is_missing(sizes: Sizes) -> None:
    assert run_part("machines", sizes).violations == []


def test_runs_at_once_end_in_one_artifact_of_each_stage(sizes: Sizes) -> None:
    assert run_part("concurrency", sizes).violations == []

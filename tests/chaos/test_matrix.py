"""Chains are handed out until there were enough kills, and one that was kept is not run again."""

from pathlib import Path

from tests.chaos.kills import ChainResult, Kill
from tests.chaos.launches import Flow, RunnerAlone
from tests.chaos.matrix import Lanes, Matrix

KILL = Kill("runner alone", "sft", "rank", "SIGKILL", 0.5)


def matrix(kept: Path, num_kills: int = 9, launches: tuple[type[RunnerAlone], ...] = (RunnerAlone, Flow)) -> Matrix:
    return Matrix(7, num_kills, 4, num_lanes=2, launches=launches, until=None, kept=kept, say=print)


def finish(lanes: Lanes, chain: int, num_kills: int, of: Matrix) -> ChainResult:
    result = of.plan(chain)
    result.kills += [KILL] * num_kills
    lanes.give(result)
    return result


def test_chains_are_handed_out_until_there_were_enough_kills(tmp_path: Path) -> None:
    wanted = matrix(tmp_path / "kept")
    lanes = Lanes(wanted)
    assert [lanes.take(), lanes.take(), lanes.take(), lanes.take()] == [0, 1, 2, None]  # 12 kills are under way
    finish(lanes, 0, 4, wanted)
    finish(lanes, 2, 3, wanted)
    assert lanes.take() is None  # 7 done, 4 under way
    finish(lanes, 1, 1, wanted)  # too many of its kills came too late
    assert lanes.take() == 3


def test_chains_that_cannot_be_killed_come_to_an_end(tmp_path: Path) -> None:
    wanted = matrix(tmp_path / "kept")
    lanes = Lanes(wanted)
    taken = []
    while (chain := lanes.take()) is not None:
        taken.append(chain)
        finish(lanes, chain, 0, wanted)
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7]


def test_after_an_interruption_only_the_missing_chains_are_run(tmp_path: Path) -> None:
    wanted = matrix(tmp_path / "kept", num_kills=13)
    before = Lanes(wanted)
    assert [before.take() for _ in range(4)] == [0, 1, 2, 3]
    kept = [finish(before, 2, 4, wanted), finish(before, 0, 4, wanted)]  # then it was interrupted
    again = Lanes(wanted)
    assert [again.take(), again.take(), again.take()] == [1, 3, None]
    assert again.chains == list(reversed(kept))


def test_what_was_kept_of_other_launches_is_not_used(tmp_path: Path) -> None:
    alone = matrix(tmp_path / "kept", launches=(RunnerAlone,))
    before = Lanes(alone)
    assert before.take() == 0
    finish(before, 0, 4, alone)
    assert Lanes(matrix(tmp_path / "kept", launches=(Flow,))).take() == 0


def test_chains_are_started_as_told_in_turn(tmp_path: Path) -> None:
    plans = [matrix(tmp_path / "kept").plan(chain) for chain in range(4)]
    assert [plan.launch for plan in plans] == ["runner alone", "flow", "runner alone", "flow"]
    assert [plan.num_processes for plan in plans] == [1, 1, 2, 1]
    assert [plan.seed for plan in plans] == ["7-0", "7-1", "7-2", "7-3"]

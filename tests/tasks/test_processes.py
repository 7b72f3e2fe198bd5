import warnings

import pytest
import torch

from tasks.processes import Processes


@pytest.mark.parametrize(("rank", "rows"), [(0, [0, 3, 6]), (1, [1, 4, 0]), (2, [2, 5, 1])])
def test_shares_cover_the_rows_with_equally_many_each(rank: int, rows: list[int]) -> None:
    processes = Processes()
    processes.rank, processes.count = rank, 3
    assert processes.share(7) == rows


def test_a_process_alone_keeps_what_it_has() -> None:
    processes = Processes()
    assert (processes.rank, processes.count, processes.is_main) == (0, 1, True)
    assert processes.share(3) == [0, 1, 2]
    assert processes.any(True)
    assert not processes.any(False)
    assert processes.sum_each({"loss": torch.tensor(2.5)}) == {"loss": torch.tensor(2.5)}


def test_a_run_without_trackers_is_not_warned_of_any() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Processes().accelerator.log_with == []


def test_each_number_is_summed_under_its_own_name_and_all_in_one_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"loss": 1.0, "ratio": 20.0}, {"loss": 0.5, "ratio": 30.0}]
    calls = []

    def all_reduce(tensor: torch.Tensor) -> None:
        calls.append(tensor.shape)
        for other in others:
            tensor += torch.tensor(list(other.values()))

    processes = Processes()
    processes.count = 3
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    mine = {"loss": torch.tensor(2.0), "ratio": torch.tensor(50.0)}
    totals = processes.sum_each(mine)
    assert {name: total.item() for name, total in totals.items()} == {"loss": 3.5, "ratio": 100.0}
    assert mine == {"loss": torch.tensor(2.0), "ratio": torch.tensor(50.0)}
    assert len(calls) == 1

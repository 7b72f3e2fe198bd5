import pytest

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

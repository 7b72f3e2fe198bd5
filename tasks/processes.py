"""The processes of one run, started by `accelerate launch`: who does which rows, and how the results come together.

Shapes: B rows of all processes, b = ceil(B / processes) rows of one.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, distributed


class Processes:
    """The process group, or this process alone. Models are not wrapped: gradients are summed by `sum_in_place`.

    On GPUs operations are made deterministic, so that the same seed gives the same bits; what has no deterministic form
    is warned of.
    """

    def __init__(self, trackers: Sequence[str] = (), folder: Path | None = None) -> None:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), log_with=list(trackers) or None, project_dir=folder
        )
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.count_here: int = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))  # on this machine
        self.is_main: bool = accelerator.is_main_process

    def share(self, num_rows: int) -> list[int]:
        """Which of `num_rows` rows are this process's: every count-th, with some twice where they do not divide."""
        num_mine = -(-num_rows // self.count)
        return [(self.rank + turn * self.count) % num_rows for turn in range(num_mine)]

    def gather(self, rows: Tensor, num_rows: int) -> Tensor:
        """The rows [B, ...] of all processes in their order, given each one's [b, ...] as `share` numbered them."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[:num_rows]

    def sum_in_place(self, tensor: Tensor) -> Tensor:
        """`tensor`, now holding the sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def sum_each(self, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each number [], summed over all processes, which give the same names."""
        totals = self.sum_in_place(torch.stack(list(numbers.values())))
        return dict(zip(numbers, totals, strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return bool(self.sum_in_place(torch.tensor(float(flag), device=self.device)))

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Wait for every process, then close the trackers and end the group.

        A rank that ends while others still talk aborts them.
        """
        self.wait()
        self.accelerator.end_training()

"""One run over several processes: what they share of a batch or of the chains, and what they add up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed

__all__ = ["ALONE", "Processes"]


class Processes:
    """The processes of a group, each with a part of every batch, or of the chains; without one, the one that there is.

    Args:
        group: a process group, such as `torch.distributed.group.WORLD`, or None.

    Attributes:
        rank: number of this process.
        size: number of processes.

    Raises:
        TypeError: if it is no process group.

    Example:
        >>> alone = Processes(None)
        >>> alone.size, alone.rows(torch.arange(4)).tolist()
        (1, [0, 1, 2, 3])
    """

    def __init__(self, group: Any = None) -> None:
        self.group: Any = group
        if group is not None and not (distributed.is_available() and isinstance(group, distributed.ProcessGroup)):
            raise TypeError(
                f"Expected process_group to be a torch.distributed.ProcessGroup or None; got {type(group).__name__}. "
                "Call torch.distributed.init_process_group under torchrun, and pass torch.distributed.group.WORLD."
            )
        self.rank = 0 if group is None else distributed.get_rank(group)
        self.size = 1 if group is None else distributed.get_world_size(group)

    @classmethod
    def given(cls, group: Any) -> "Processes":
        """The same for an argument that several processes may not leave out: each would go its own way.

        Raises:
            ValueError: if it is None, and `torch.distributed` has several processes.
        """
        several = group is None and distributed.is_available() and distributed.is_initialized()
        if several and (size := distributed.get_world_size()) > 1:
            raise ValueError(
                f"Expected process_group, as torch.distributed has {size} processes; got None. Pass "
                "`torch.distributed.group.WORLD`, or, for a run of this process alone, a group of it: "
                "`torch.distributed.new_subgroups(1)[0]`."
            )
        return cls(group)

    def check_divides(self, name: str, value: int) -> None:
        """Raise ValueError if a number of rows cannot be divided evenly."""
        if value % self.size:
            raise ValueError(f"Expected {name} to be a multiple of the {self.size} processes; got {value}.")

    def rows(self, value: torch.Tensor) -> torch.Tensor:
        """This process's rows of something that all processes have."""
        each = len(value) // self.size
        return value[self.rank * each : (self.rank + 1) * each]

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        """The rows of all processes; derivatives go to this process's own."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        distributed.all_gather(parts, value.detach().contiguous(), group=self.group)
        parts[self.rank] = value
        return torch.cat(parts)

    def sum(self, values: Sequence[Any]) -> list[Any]:
        """The sums over all processes, in one exchange; None, which is so in all of them, stays."""
        if self.size == 1:
            return list(values)
        present = [value for value in values if value is not None]
        flat = torch.cat([value.detach().flatten() for value in present])
        distributed.all_reduce(flat, group=self.group)
        sums = iter(flat.split([value.numel() for value in present]))
        return [None if value is None else next(sums).reshape(value.shape) for value in values]

    def mean(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The means over all processes, in one exchange."""
        return [value / self.size for value in self.sum(values)] if self.size > 1 else list(values)

    def take_over(self, values: Sequence[torch.Tensor]) -> None:
        """Copy the first process's tensors into those of the others."""
        if self.size > 1:
            for value in values:
                distributed.broadcast(value.data, distributed.get_global_rank(self.group, 0), group=self.group)

    def of_first(self, value: Any) -> Any:
        """The first process's object."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, distributed.get_global_rank(self.group, 0), group=self.group)
        return values[0]

    def check_same(self, name: str, value: Any) -> None:
        """Raise ValueError, in every process, if they do not all have the same."""
        values = self.of_all(value)
        if any(other != values[0] for other in values):
            raise ValueError(f"Expected {name} to be the same in all {self.size} processes; got {values}.")

    def own_stream(self, *position: int) -> None:
        """Give each process random numbers of its own, that follow from the state of the first one's generator.

        Args:
            position: how far the run has come, so that one that goes on does not meet the same numbers again.
        """
        if self.size > 1:
            seed = self.of_first(int(torch.randint(2**62, ())))
            entropy = np.random.SeedSequence([seed, self.rank, *position])
            torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def wait(self) -> None:
        """Wait until every process has come so far."""
        if self.size > 1:
            distributed.barrier(group=self.group)

    def of_all(self, value: Any) -> list[Any]:
        """The objects of all processes."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            distributed.all_gather_object(values, value, group=self.group)
        return values


#: No other processes.
ALONE = Processes()

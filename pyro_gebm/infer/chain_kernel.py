"""What a kernel must provide to be run by `VectorizedMCMC` and `stream_draws`."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

__all__ = ["ChainKernel", "started"]

State = TypeVar("State")


def started(state: State | None) -> State:
    """The state of a kernel.

    Raises:
        RuntimeError: if there is none.
    """
    if state is None:
        raise RuntimeError("Expected a kernel that has started; got one without a state. Run it by `MCMC` first.")
    return state


@runtime_checkable
class ChainKernel(Protocol):
    """A kernel that runs many chains as one tensor: under `VectorizedMCMC`, and streamed to a file.

    The kernels of `infer` are such kernels. One of your own is too, if it has the methods below; it need not inherit
    from this class, but has the defaults of the last four if it does. If your kernel is a step that needs a start, a
    warm-up and statistics around it, inherit from `infer.LangevinKernel` instead.

    Attributes:
        transforms: maps sites to their transforms from constrained to unconstrained space, once `setup_chains` has run.

    Over several processes (`VectorizedMCMC(process_group=)`) each has a kernel with its part of the chains. It is given
    `processes`, by which it adds up what it adapts to. If it has `of_chains`, a dictionary from the entries of
    `state_dict` with an axis of chains to that axis, a stream of draws can go on with another number of processes.
    """

    transforms: Any

    def setup_chains(
        self,
        warmup_steps: int,
        num_chains: int,
        initial_params: dict[str, torch.Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Start N chains of a warm-up of so many iterations at most.

        Args:
            warmup_steps: iterations of the warm-up, at most.
            num_chains: N.
            initial_params: dict of unconstrained tensors with a leading axis of N; None draws them.
            args: arguments of the model.
            kwargs: keyword arguments of the model.
        """
        ...

    def advance(self) -> None:
        """One more step of the warm-up, or one more draw, of all chains."""
        ...

    def positions(self) -> dict[str, torch.Tensor]:
        """Positions of all chains: dict of unconstrained tensors with a leading axis of N."""
        ...

    def statistics(self) -> dict[str, torch.Tensor]:
        """Statistics of the last draw in shape `(N,)`, "diverging" and "acceptance_rate" among them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State after the warm-up, the random state included: nested dictionaries of tensors and numbers."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a state from `state_dict`, after `setup_chains`."""
        ...

    def warmup_converged(self) -> bool:
        """Whether the rest of the warm-up can be skipped; asked before each of its steps."""
        return False

    def end_warmup(self) -> None:
        """The next step gives the first draw."""
        return

    def check(self) -> None:
        """Raise an error if the run is of no use any more; called now and then, and may read from the device."""
        return

    def logging(self) -> Mapping[str, Any]:
        """What the progress bar shows."""
        return {}

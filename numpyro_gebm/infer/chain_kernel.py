"""What a kernel must provide to be run by `stream_draws`."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import jax

__all__ = ["ChainKernel"]


@runtime_checkable
class ChainKernel(Protocol):
    """A NumPyro kernel whose chains can be streamed to a file.

    The kernels of `infer` are such kernels. One of your own is too, if it is an `MCMCKernel` that can run with
    `chain_method="vectorized"` (its `init` takes the keys of all chains, its state has a leading axis of N) and has the
    methods below; it need not inherit from this class, but has their defaults if it does:
    `class MyKernel(MCMCKernel, ChainKernel)`. If your kernel is a step that needs a start, a warm-up and statistics
    around it, inherit from `infer.LangevinKernel` instead.

    Attributes:
        sample_field: path in the state to the draws, as in `MCMCKernel`.
        default_fields: paths in the state to what is recorded of every draw.
    """

    sample_field: ClassVar[str]
    default_fields: ClassVar[tuple[str, ...]]

    def init(
        self, rng_key: jax.Array, num_warmup: int, init_params: Any, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> Any:
        """The state before the first step, as in `MCMCKernel`."""
        ...

    def sample(self, state: Any, model_args: tuple, model_kwargs: dict[str, Any]) -> Any:
        """The state after one more step of the warm-up, or one more draw, as in `MCMCKernel`."""
        ...

    def postprocess_fn(self, model_args: tuple, model_kwargs: dict[str, Any]) -> Any:
        """A callable from the unconstrained draw of one chain to sites of the model, as in `MCMCKernel`."""
        ...

    def warmup_converged(self, state: Any) -> bool:
        """Whether the rest of the warm-up can be skipped; asked now and then."""
        return False

    def end_warmup(self, state: Any) -> Any:
        """The state from which the next step gives the first draw."""
        return state

    def save(self, state: Any) -> Any:
        """What is written of a state: a pytree of arrays."""
        return state

    def restore(self, saved: Any) -> Any:
        """The state that was saved."""
        return saved

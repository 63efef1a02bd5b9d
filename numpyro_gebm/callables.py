"""Networks inside a GEBM, as pytree fields: arrays are data, everything else is static."""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

__all__ = ["Energy", "Generator", "Partitioned", "array_name", "check_evaluation_mode", "output_of", "over_batch"]

Fn = TypeVar("Fn")


class Energy(Protocol):
    """A callable pytree from one event, of the base's event shape, to a scalar of shape `()`."""

    def __call__(self, x: jax.Array, /) -> jax.Array: ...


class Generator(Protocol):
    """A callable pytree from one latent, of the latent prior's event shape, to one event."""

    def __call__(self, z: jax.Array, /) -> jax.Array: ...


def _is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray))


class Partitioned(eqx.Module, Generic[Fn]):
    """A callable split so that `jax.jit` sees its arrays as data and the rest as part of the trace's key.

    New weights of the same shapes therefore never cause a new trace.
    """

    arrays: Any
    static: Any = eqx.field(static=True)

    def __init__(self, fn: Fn):
        self.arrays, self.static = eqx.partition(fn, _is_array)

    @property
    def fn(self) -> Fn:
        """The callable, put together again."""
        return eqx.combine(self.arrays, self.static)


def over_batch(fn: Callable[[jax.Array], jax.Array], value: ArrayLike, event_dim: int) -> jax.Array:
    """Apply a one-example function to an array with any number of leading batch axes.

    Args:
        fn: callable from an array with `event_dim` axes to an array.
        value: array of shape `batch + event`.
        event_dim: number of trailing axes that belong to one example.

    Returns:
        Array of shape `batch + output`.
    """
    value = jnp.asarray(value)
    batch = value.shape[: value.ndim - event_dim]
    if not batch:
        return fn(value)
    out = jax.vmap(fn)(value.reshape((-1, *value.shape[len(batch) :])))
    return out.reshape(batch + out.shape[1:])


def output_of(
    fn: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype: DTypeLike, name: str, example: str
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of `fn` on one `example` of the given shape, without running it.

    Raises:
        ValueError: if `fn` cannot take such an input, or does not return one floating-point array.
    """
    try:
        out = jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:
        raise ValueError(
            f"The {name} cannot take {example} of shape {tuple(shape)} ({dtype}): "
            f"{type(error).__name__}: {str(error).splitlines()[0]}. Expected a callable on one example, without a "
            f"batch axis; check the {name}'s input size, or the latent prior's event_shape (`.to_event(1)`?)."
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"The {name} must return one floating-point array; got {out}.")
    return out


def check_evaluation_mode(fn: Callable, name: str) -> None:
    """Refuse Equinox modules (dropout, BatchNorm) that are in training mode.

    Raises:
        ValueError: if a submodule has `inference=False`.
    """
    modules = jax.tree_util.tree_leaves(fn, is_leaf=lambda node: hasattr(node, "inference"))
    found = sorted({type(m).__name__ for m in modules if getattr(m, "inference", None) is False})
    if found:
        raise ValueError(
            f"The {name} must be in evaluation mode, so that it is one fixed function; got {', '.join(found)} with "
            f"inference=False. Pass `equinox.nn.inference_mode({name})`."
        )


def array_name(prefix: str, path: tuple[Any, ...]) -> str:
    """PyTorch-style name of a leaf: `energy.layers.0.weight`."""
    parts = [str(getattr(k, "name", getattr(k, "idx", getattr(k, "key", k)))) for k in path]
    return ".".join([prefix, *parts])

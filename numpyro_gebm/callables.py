"""Networks inside a GEBM, as pytree fields: arrays are data, everything else is static."""

import math
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from numpyro.util import not_jax_tracer

__all__ = [
    "Energy",
    "Generator",
    "Partitioned",
    "array_name",
    "check_evaluation_mode",
    "check_fixed",
    "is_learned",
    "output_of",
    "over_batch",
]

#: Attributes that are False where a layer is in training mode: Equinox; Flax NNX.
_SWITCHES = ("inference", "deterministic", "use_running_average")

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
    out = jax.vmap(fn)(value.reshape((math.prod(batch), *value.shape[len(batch) :])))
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
        if type(error).__name__ == "TraceContextError":  # of Flax NNX
            raise ValueError(
                f"The {name} must be in evaluation mode, so that it is one fixed function; got a module that changes "
                f"when it is called ({str(error).split(' (')[0]}). Call `{name}.eval()`."
            ) from error
        if isinstance(error, jax.errors.UnexpectedTracerError):
            raise _not_fixed(name) from error
        raise ValueError(
            f"The {name} cannot take {example} of shape {tuple(shape)} ({dtype}): "
            f"{type(error).__name__}: {str(error).splitlines()[0]}. Expected a callable on one example, without a "
            f"batch axis; check the {name}'s input size, or the latent prior's event_shape (`.to_event(1)`?)."
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"The {name} must return one floating-point array; got {out}.")
    return out


def check_evaluation_mode(fn: Callable, name: str) -> None:
    """Refuse modules of Equinox and Flax NNX (dropout, BatchNorm) that are in training mode.

    Raises:
        ValueError: if a layer has `inference`, `deterministic` or `use_running_average` False.
    """
    found = sorted(set(_in_training_mode(fn)))
    if found:
        raise ValueError(
            f"The {name} must be in evaluation mode, so that it is one fixed function; got {', '.join(found)}. Pass "
            f"`equinox.nn.inference_mode({name})`; of Flax NNX, call `{name}.eval()` before `nnx.split`."
        )


def _in_training_mode(fn):
    """What is in training mode, also in the graph of Flax NNX that a function encloses."""
    for node in jax.tree_util.tree_leaves(fn, is_leaf=lambda node: any(hasattr(node, name) for name in _SWITCHES)):
        yield from (f"{type(node).__name__} with {s}=False" for s in _SWITCHES if getattr(node, s, None) is False)
    for value in _enclosed(getattr(fn, "apply", fn)):
        attributes = getattr(value, "attributes", None) if hasattr(value, "nodes") else None
        for name, attribute in attributes or ():
            if name in _SWITCHES and getattr(attribute, "value", None) is False:
                yield f"a module of Flax NNX with {name}=False"


def is_learned(fn: Callable) -> bool:
    """Whether a derivative is being taken by an array of a network, or by one that a function encloses."""
    leaves = jax.tree.leaves([fn, *_enclosed(getattr(fn, "fn", fn))])
    return any(type(leaf).__name__ in ("JVPTracer", "LinearizeTracer") for leaf in leaves)


def _enclosed(fn):
    for cell in getattr(fn, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet assigned
            continue


def check_fixed(fn: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype: DTypeLike, name: str) -> None:
    """Check that two traces of a network on one example are the same: it draws no noise, and keeps no state.

    Raises:
        ValueError: if they differ.
    """
    example = jax.ShapeDtypeStruct(shape, dtype)
    try:
        one, other = (jax.make_jaxpr(lambda x: fn(x))(example) for _ in range(2))  # a new function each: a new trace
    except jax.errors.UnexpectedTracerError as error:
        raise _not_fixed(name) from error
    same = str(one.jaxpr) == str(other.jaxpr) and len(one.consts) == len(other.consts)
    if not same or not all(map(_equal, one.consts, other.consts)):
        raise _not_fixed(name)


def _not_fixed(name):
    return ValueError(
        f"Expected the {name} to be one fixed function; got another one at the second call: it draws noise of NumPy, "
        f"or keeps a key or other state that its calls change. Fix the key, make the noise a part of the latent, or "
        f"put the {name} in evaluation mode."
    )


def _equal(one, other):
    if one is other:
        return True
    if not (not_jax_tracer(one) and not_jax_tracer(other)):  # left over from the first trace
        return False
    if jnp.issubdtype(jnp.result_type(one), jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    return np.array_equal(one, other, equal_nan=True)


def array_name(prefix: str, path: tuple[Any, ...]) -> str:
    """PyTorch-style name of a leaf: `energy.layers.0.weight`."""
    parts = [str(getattr(k, "name", getattr(k, "idx", getattr(k, "key", k)))) for k in path]
    return ".".join([prefix, *parts])

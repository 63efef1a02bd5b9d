"""The class of our distributions: each can be a stack of distributions, as a scan or `jax.vmap` returns it."""

import copy
import functools
import inspect
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax, random
from numpyro.distributions.batch_util import promote_batch_shape

from gebm.networks import check_event, shape_of
from gebm.validation import real_numbers

__all__ = ["Distribution", "over_stack", "sample_stack", "support_of"]

Method = TypeVar("Method", bound=Callable)

if TYPE_CHECKING:  # NumPyro's metaclass returns `Any`, so that a checker would look at no argument of a constructor
    from numpyro.distributions.distribution import DistributionMeta

    T = TypeVar("T")

    class _Checked(DistributionMeta):
        def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T: ...

    class _Host(dist.Distribution, metaclass=_Checked): ...
else:
    _Host = dist.Distribution


class Distribution(_Host):
    """NumPyro's base class of distributions, for those that hold distributions and networks.

    `numpyro.contrib.control_flow.scan`, and `jax.vmap` of a function that makes distributions, return a *stack*: one
    object whose arrays have axes in front of those that they were made with. NumPyro's own distributions are functions
    that broadcast, so that `promote_batch_shape` only has to correct their batch shape. A network does not broadcast:
    a stack of ours evaluates each of its distributions at its own values. The batch shape and all fields are to be
    known when this constructor is called.
    """

    pytree_aux_fields = ("_made_with",)

    def __init__(
        self, batch_shape: tuple[int, ...], event_shape: tuple[int, ...], *, validate_args: bool | None = None
    ) -> None:
        self._made_with = len(batch_shape), _ndims(self)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @classmethod
    def gather_pytree_data_fields(cls) -> tuple[str, ...]:
        """The fields with arrays, in the same order in every process, as compiled programs on disk need it."""
        return tuple(sorted(super().gather_pytree_data_fields()))

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """Axes in front of those that the arrays were made with; () for a distribution that is no stack."""
        return lax.broadcast_shapes((), *_stack_shapes(self))

    def replaced(self, **fields: Any) -> Self:
        """A copy with other fields, which are not those of a stack."""
        new = copy.copy(self)
        vars(new).update(fields)
        new._made_with = len(new.batch_shape), _ndims(new)
        return new


def over_stack(event_shape: str) -> Callable[[Method], Method]:
    """Let a method from values to values be that of every distribution of a stack.

    Args:
        event_shape: attribute that holds the shape of one value.

    Returns:
        A decorator; its result maps shape `sample_shape + stack_shape + ...` to such a shape, and raises a `TypeError`
        for what is not real numbers, a `ValueError` for another shape.
    """

    def decorator(method):
        name = list(inspect.signature(method).parameters)[1]

        @functools.wraps(method)
        def of_each(self, *args, **kwargs):
            value, *args = args if args else (kwargs.pop(name),)
            value, event = real_numbers(name, value, jnp.asarray), operator.attrgetter(event_shape)(self)
            check_event(name, value.shape, event)
            shape = self.stack_shape
            if not shape:
                return method(self, value, *args, **kwargs)  # in a stack, what comes with it is of one distribution
            axis = value.ndim - len(event) - self._made_with[0] - len(shape)
            value = value.reshape((1,) * -axis + value.shape)
            axis = max(axis, 0)
            size = max(shape[0], value.shape[axis])
            value = jnp.broadcast_to(value, (*value.shape[:axis], size, *value.shape[axis + 1 :]))
            return _mapped(of_each, self, value, axis, axis)

        return cast(Any, of_each)

    return decorator


def sample_stack(method: Method) -> Method:
    """Let `sample` draw from every distribution of a stack; it raises an error for what is no shape."""

    @functools.wraps(method)
    def of_each(self, key, sample_shape=()):
        shape, sample_shape = self.stack_shape, shape_of("sample_shape", sample_shape, minimum=0)
        if not shape:
            return method(self, key, sample_shape)
        draw = functools.partial(of_each, sample_shape=sample_shape)
        return _mapped(draw, self, random.split(key, shape[0]), 0, len(sample_shape))

    return cast(Any, of_each)


def _ndims(distribution):
    return tuple(map(jnp.ndim, jax.tree.leaves(distribution)))


def _stack_shapes(distribution):
    leaves, ndims = jax.tree.leaves(distribution), distribution._made_with[1]
    return [jnp.shape(x)[: jnp.ndim(x) - ndim] for x, ndim in zip(leaves, ndims)]


def _mapped(fn, stack, x, axis, out_axis):
    """`fn(distribution, x)` over the first axis of a stack and an axis of x, where arrays of length 1 broadcast."""
    (leaves, structure), shapes = jax.tree.flatten(stack), _stack_shapes(stack)
    first = [len(shape) == len(stack.stack_shape) for shape in shapes]
    leaves = [jnp.squeeze(x, 0) if f and shape[0] == 1 else x for x, f, shape in zip(leaves, first, shapes)]
    axes = [0 if f and shape[0] > 1 else None for f, shape in zip(first, shapes)]

    def of_one(leaves, x):
        one = jax.tree.unflatten(structure, leaves)
        one._batch_shape = one.batch_shape[len(one.batch_shape) - one._made_with[0] :]
        return fn(one, x)

    return jax.vmap(of_one, (axes, axis), out_axis)(leaves, x)


@promote_batch_shape.register  # pyright: ignore[reportCallIssue, reportArgumentType]  # by its types it never returns
def _promote_batch_shape(distribution: Distribution):
    batch_shape = distribution.batch_shape
    own = batch_shape[len(batch_shape) - distribution._made_with[0] :]
    new = copy.copy(distribution)
    new._batch_shape = distribution.stack_shape + own
    return new


def support_of(distribution: dist.Distribution, stack: Distribution) -> Any:
    """Support of a part of a distribution, which may be a stack."""
    return (promote_batch_shape(distribution) if stack.stack_shape else distribution).support

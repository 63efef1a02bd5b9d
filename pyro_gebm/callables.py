"""Networks inside a GEBM: applied to batches, and checked without side effects."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import pyro
import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from gebm.networks import check_event
from gebm.validation import real_numbers

__all__ = [
    "Energy",
    "Generator",
    "PrivateRandomness",
    "Shape",
    "as_events",
    "check_evaluation_mode",
    "check_fixed",
    "copy_of_values",
    "draw_quietly",
    "evaluation_mode",
    "is_learned",
    "output_of",
    "over_batch",
    "quietly",
]

Value = TypeVar("Value")

#: Shapes as PyTorch takes them.
Shape = torch.Size | list[int] | tuple[int, ...]


class Energy(Protocol):
    """A `torch.nn.Module` or callable from a batch of events `(N, *event)` to their energies `(N,)`."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...


class Generator(Protocol):
    """A `torch.nn.Module` or callable from a batch of latents `(N, *latent)` to events `(N, *event)`."""

    def __call__(self, z: torch.Tensor, /) -> torch.Tensor: ...


def over_batch(fn: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor, event_dim: int) -> torch.Tensor:
    """Apply a batched function `(N, *event) -> (N, *output)` to a tensor with any number of leading batch axes.

    Args:
        fn: callable on tensors with exactly one batch axis.
        value: tensor of shape `batch + event`.
        event_dim: number of trailing axes that belong to one example.

    Returns:
        Tensor of shape `batch + output`.
    """
    if value.dim() == event_dim + 1:
        return fn(value)
    batch = value.shape[: value.dim() - event_dim]
    out = fn(value.reshape(-1, *value.shape[len(batch) :]))
    return out.reshape(batch + out.shape[1:])


def as_events(name: str, value: torch.Tensor, event_shape: Shape) -> torch.Tensor:
    """Values that end in the axes of an event, or of a latent, as a tensor.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        event_shape: shape of one event.

    Returns:
        The values.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape.
    """
    if not isinstance(value, torch.Tensor) or value.is_complex():
        value = real_numbers(name, value, torch.as_tensor)
    check_event(name, value.shape, event_shape)
    return value


@contextlib.contextmanager
def evaluation_mode(*fns: object) -> Iterator[None]:
    """Put modules in evaluation mode within a block, then every submodule back as it was."""
    modules = [m for fn in fns if isinstance(fn, torch.nn.Module) for m in fn.modules()]
    flags = [m.training for m in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


class _CopyValues(TorchFunctionMode):
    """Deep copies within it take the values of tensors that were computed, which PyTorch refuses to copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            if is_functorch_wrapped_tensor(args[0]):  # left over by a `vmap`: it has no values
                return torch.empty(0)
            if not args[0].is_leaf:
                return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copy_of_values(value: Value) -> Value:
    """A deep copy, also of modules and transforms that keep tensors with a graph (caches of flows, `weight_norm`)."""
    with _CopyValues():
        return copy.deepcopy(value)


class PrivateRandomness(TorchFunctionMode):
    """Random numbers of a block's own, made from PyTorch's seed; the global generators stay as they are.

    They are neither moved nor set back, which another thread that draws meanwhile would notice.

    Example:
        >>> before = torch.get_rng_state()
        >>> with PrivateRandomness():
        ...     x = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """

    def __init__(self):
        super().__init__()
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in _RANDOM and kwargs.get("generator") is None:
            like = next((x for x in args if isinstance(x, torch.Tensor)), None)
            device = torch.get_default_device() if like is None else like.device
            kwargs["generator"] = self._generator(torch.device(kwargs.get("device") or device))
            if name in _LIKE:
                kwargs = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
                return _LIKE[name](args[0].shape, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            seed = hash((torch.initial_seed(), -1)) % 2**63  # of integers, the same in every process
            self._generators[device] = torch.Generator(device).manual_seed(seed)
        return self._generators[device]


#: Functions and methods of PyTorch that take a generator, and those that do not, with another that does the same.
_LIKE = {"rand_like": torch.rand, "randn_like": torch.randn}
_RANDOM = {
    *_LIKE,
    *("normal", "rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "poisson", "binomial"),
    *("_standard_gamma", "_sample_dirichlet", "normal_", "uniform_", "exponential_", "cauchy_", "bernoulli_"),
    *("log_normal_", "geometric_", "random_"),
}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """For a check: without a graph, and with random numbers of its own."""
    with PrivateRandomness(), torch.no_grad():
        yield


def draw_quietly(distribution: torch.distributions.Distribution, num_draws: int) -> torch.Tensor:
    """Draws for a check: detached, and with random numbers of their own."""
    with quietly():
        return distribution.sample((num_draws,)).reshape(-1, *distribution.event_shape)


def output_of(fn: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor, name: str, example: str) -> torch.Tensor:
    """`fn` of a batch of at least two examples, in evaluation mode and without a graph.

    Raises:
        ValueError: if `fn` cannot take such an input, or does not return a floating-point tensor with the same
            batch axis.
    """
    shape = tuple(value.shape[1:])
    try:
        with torch.no_grad(), evaluation_mode(fn):
            out = fn(value)
    except Exception as error:
        raise ValueError(
            f"The {name} cannot take {example} of shape {shape} (as a batch {tuple(value.shape)}, {value.dtype} on "
            f"{value.device}): {type(error).__name__}: {str(error).splitlines()[0]}. Expected a callable on "
            f"(N, *{shape}); check the {name}'s input size, dtype and device, or the latent prior's event_shape "
            "(`.to_event(1)`?)."
        ) from error
    if not isinstance(out, torch.Tensor) or not out.is_floating_point() or out.shape[:1] != value.shape[:1]:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"The {name} must return a floating-point tensor whose first axis is the batch, here {value.shape[0]}; "
            f"got {got}."
        )
    return out


def is_learned(fn: object) -> bool:
    """Whether a network is in Pyro's store of parameters, or a function encloses tensors that derivatives go to."""
    if not torch.is_grad_enabled():
        return False
    cells = [cell for cell in getattr(fn, "__closure__", None) or () if cell != type(cell)()]
    parts = [fn, *(cell.cell_contents for cell in cells)]
    tensors = [x for x in parts if isinstance(x, torch.Tensor)]
    tensors += [p for part in parts if isinstance(part, torch.nn.Module) for p in part.parameters()]
    store = pyro.get_param_store()
    return any(
        x.requires_grad and (not isinstance(x, torch.nn.Parameter) or store.param_name(x) is not None)
        for x in tensors
        if not is_functorch_wrapped_tensor(x)
    )


def check_evaluation_mode(fn: object, name: str) -> None:
    """Refuse modules whose training mode carries state or noise (BatchNorm, dropout).

    Raises:
        ValueError: if such a submodule is in training mode.
    """
    if not isinstance(fn, torch.nn.Module):
        return
    kinds = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
    found = sorted(
        {
            type(m).__name__
            for m in fn.modules()
            if m.training and (isinstance(m, kinds) or type(m).__name__ == "BatchNorm")
        }
    )
    if found:
        raise ValueError(
            f"The {name} must be in evaluation mode, so that it is one fixed function; got {', '.join(found)} in "
            f"training mode. Call `{name}.eval()`."
        )


def check_fixed(fn: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor, out: torch.Tensor, name: str) -> None:
    """Check that a network is one fixed function of one example, by what it does.

    Args:
        fn: callable on a batch.
        value: the batch, of shape `(N, ...)`.
        out: what `output_of` returned for it.
        name: of the argument, for the message.

    Raises:
        ValueError: if the same batch gives other values (noise), or an example alone another value than in the batch.
    """
    with quietly():
        again = fn(value)
        if again.shape != out.shape or not _close(again, out, 0.75):
            raise ValueError(
                f"Expected the {name} to be one fixed function; got two values for the same input, "
                f"{_apart(again, out)}: it draws noise, or changes with every call. Call `{name}.eval()`; noise that "
                "stays in evaluation mode (inside `forward`, functional dropout) must be fixed, or become a part of "
                "the latent."
            )
        try:
            alone = fn(value[:1])
            same = alone.shape == out[:1].shape and _close(alone, out[:1], 0.4)
            found = "" if same else _apart(alone, out[:1])
        except Exception as error:
            same, found = False, f"alone {type(error).__name__}: {str(error).splitlines()[0]}"
    if not same:
        raise ValueError(
            f"Expected the {name} of an example not to depend on the rest of its batch; got for the first of "
            f"{len(value)} examples, alone and in the batch, {found}. Freeze the statistics of its batches "
            "(BatchNorm with `track_running_stats=True`, trained, then `.eval()`), or use layers that see one example "
            "(LayerNorm, GroupNorm)."
        )


def _close(one, other, digits):
    """Equal to a part of the digits of the dtype: most for the same operations, fewer for another batch size."""
    tolerance = torch.finfo(other.dtype).eps ** digits
    scale = other[other.isfinite()].abs().double().mean().nan_to_num().item()
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _apart(one, other):
    if one.shape != other.shape:
        return f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
    place = (one - other).abs().nan_to_num(torch.inf).argmax()
    return f"{one.flatten()[place].item():.6g} and {other.flatten()[place].item():.6g}"

"""A program's draws at a site, as the base of a GEBM."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import constrain_fn, potential_energy
from numpyro.primitives import Messenger

from gebm import programs
from gebm.programs import Site, check_arguments, check_sites, no_density
from gebm.tilting import plate_depth
from gebm.validation import flag, optional
from numpyro_gebm.base import Decomposable
from numpyro_gebm.callables import Generator, Partitioned
from numpyro_gebm.distribution import Distribution, over_stack, sample_stack
from numpyro_gebm.effects import alone
from numpyro_gebm.keys import typed

__all__ = ["Program", "ProgramLatents"]

#: Continuous distributions without `has_rsample` whose draws JAX differentiates all the same, implicitly.
_IMPLICIT = (dist.Gamma, dist.Beta, dist.Dirichlet, dist.StudentT, dist.LKJCholesky, dist.LKJ)


class Program(Decomposable, Distribution):
    r"""The law of a program's value at one of its sites, as a base for `KALE`, `GEBM` and `kale_test`.

    What the program does up to the site is the base. Its `param` sites there, with those of networks (`eqx_module`,
    `flax_module`, `nnx_module`), are what KALE trains, by the gradient of reparametrised draws. Its sample sites
    there, on the unconstrained space and in one vector, are the latent of a GEBM over it, with
    their joint density as the latent prior. With discrete sites it is a base for the energy alone.

    Args:
        model: a NumPyro program.
        site: name of a sample site that is not observed, or of a deterministic one. Its value, with the axes of all
            plates around it, is one event.
        args: arguments of the model.
        kwargs: keyword arguments of the model.
        rng_key: a JAX random key, for parameters that the program starts at random; None for `jax.random.key(0)`.

    Shapes: `batch_shape` is (); `event_shape` is the shape of the site's value.

    Raises:
        TypeError: if the model cannot be called, or the site is not a name.
        ValueError: if there is no such site, its values are not floating-point numbers, it or a site before it is
            observed, or a plate subsamples.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> def model():
        ...     scale = numpyro.param("scale", 2.0, constraint=dist.constraints.positive)
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, scale))
        ...     with numpyro.plate("rows", 3):
        ...         numpyro.sample("x", dist.Normal(mean, 1.0))
        >>> base = Program(model, "x")
        >>> base, base.sample(jax.random.key(0), (5,)).shape, float(base.params["scale"])
        (Program(site: x, event_shape: (3,), latents: mean, x), (5, 3), 2.0)
    """

    arg_constraints = {}
    pytree_data_fields = ("_model", "_arguments", "_free")
    pytree_aux_fields = ("site", "_sites", "_shapes", "_is_plated")

    def __init__(
        self,
        model: Callable[..., Any],
        site: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        rng_key: jax.Array | None = None,
        validate_args: bool | None = None,
    ):
        optional(flag)("validate_args", validate_args)
        model, self.site, args, kwargs = check_arguments(model, site, args, kwargs)
        self._model, self._arguments = Partitioned(model), Partitioned((args, kwargs))
        self._free: dict[str, Any] = {}
        key = random.key(0) if rng_key is None else typed(rng_key)
        trace = self._traced(key)
        self._sites = tuple(_described(msg) for msg in trace.values() if msg["type"] in ("sample", "plate"))
        names = [*self._sites, *(Site(name) for name, msg in trace.items() if msg["type"] == "deterministic")]
        check_sites(names, site, site in {s.name for s in names})
        value = jnp.asarray(trace[site]["value"])
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"Expected floating-point values at site '{site}'; got {value.dtype}.")
        self._free = {name: _moved(msg, inverse=True) for name, msg in trace.items() if msg["type"] == "param"}
        self._is_plated = plate_depth(trace[site]["cond_indep_stack"]) > 0
        self._shapes = () if self.discrete else tuple((name, jnp.shape(u)) for name, u in _latents(trace).items())
        super().__init__((), value.shape, validate_args=validate_args)

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the discrete sites; with some, there is no latent."""
        return tuple(s.name for s in self._sites if s.is_discrete)

    @property
    def params(self) -> dict[str, Any]:
        """Values of the program's `param` sites."""
        trace = self._traced(random.key(0))
        return {name: trace[name]["value"] for name in self._free}

    @property
    def program(self) -> Callable[[], Any]:
        """The whole program, at these parameters and without arguments, to `tilt` at `event_site` or to run."""
        return self._bound(self._model.fn if self.event_site == self.site else self._with_event)

    @property
    def event_site(self) -> str:
        """Where `program` has a whole event: the site, or for one in plates a deterministic site `<site>_event`."""
        return f"{self.site}_event" if self._is_plated else self.site

    @property
    def has_rsample(self) -> bool:
        return all(s.has_rsample for s in self._sites)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @sample_stack
    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw the value of the site: array of shape `sample_shape + event_shape`."""
        return self._draws(key, sample_shape, lambda trace: jnp.asarray(trace[self.site]["value"]))

    def constrain(self, z: jax.Array) -> dict[str, jax.Array]:
        """Values of the program's sites, by name, at latents.

        Args:
            z: shape `batch + (d,)`, such as draws of `gebm.latent`.

        Returns:
            Arrays of shape `batch + ...`.
        """
        z = jnp.asarray(z)
        values = jax.vmap(self._values)(z.reshape(-1, z.shape[-1]))
        return {name: value.reshape(z.shape[:-1] + value.shape[1:]) for name, value in values.items()}

    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> jax.Array:
        """Not defined: it is an integral over the program's other sites.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(no_density(self.site, self.discrete))

    def __repr__(self) -> str:
        latents = ", ".join(s.name for s in self._sites if not s.is_plate)
        return f"Program(site: {self.site}, event_shape: {self.event_shape}, latents: {latents})"

    def decomposed(self) -> tuple[dist.Distribution, Generator] | None:
        """`ProgramLatents` and what the program makes of them; None with discrete sites."""
        return None if self.discrete else (ProgramLatents(self), _Replay(self))

    def trained_part(self) -> dict[str, Any]:
        """Unconstrained values of the `param` sites."""
        return self._free

    def with_trained_part(self, part: dict[str, Any]) -> "Program":
        """The same program at other values of its `param` sites."""
        return self.replaced(_free=part)

    def check_trainable(self) -> None:
        """Refuse a program whose draws have no gradient."""
        programs.check_differentiable(self._sites, self.site)

    def _with_event(self, *args, **kwargs):
        kept = _Kept(site=self.site)
        with kept:
            out = self._model.fn(*args, **kwargs)
        numpyro.deterministic(self.event_site, kept.value)
        return out

    def _bound(self, fn):
        args, kwargs = self._arguments.fn
        return _Params(lambda: fn(*args, **kwargs), self._free)

    def _up_to_site(self):
        return self._bound(_UpTo(self._model.fn, self.site))

    def _traced(self, key):
        with alone():
            return handlers.trace(handlers.seed(self._up_to_site(), key)).get_trace()

    def _draws(self, key, sample_shape, of_trace):
        keys = random.split(typed(key), math.prod(sample_shape))
        values = jax.vmap(lambda key: of_trace(self._traced(key)))(keys)
        return values.reshape(sample_shape + values.shape[1:])

    def _unravel(self, z):
        values, start = {}, 0
        for name, shape in self._shapes:
            size = math.prod(shape)
            values[name] = z[start : start + size].reshape(shape)
            start += size
        return values

    def _values(self, z):
        with alone():
            return constrain_fn(self._up_to_site(), (), {}, self._unravel(z), return_deterministic=True)

    def _log_density(self, z):
        with alone():
            return -potential_energy(self._up_to_site(), (), {}, self._unravel(z))


class ProgramLatents(Distribution):
    r"""The sample sites of a program up to a site, unconstrained and in one vector: the latent prior of `Program`.

    Args:
        program: a `Program` without discrete sites.

    Shapes: `batch_shape` is (); `event_shape` is `(d,)`, the sites in the order of the program.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> law = ProgramLatents(Program(lambda: numpyro.sample("x", dist.LogNormal(0.0, 1.0)), "x"))
        >>> round(float(law.log_prob(jax.numpy.zeros(1))), 4)  # N(0, 1) at 0: x = exp(z)
        -0.9189
    """

    arg_constraints = {}
    pytree_data_fields = ("law",)

    def __init__(self, program: Program, *, validate_args: bool | None = None):
        self.law = program
        super().__init__((), (sum(math.prod(s) for _, s in program._shapes),), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return self.law.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    @sample_stack
    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw latents: array of shape `sample_shape + (d,)`."""
        return self.law._draws(
            key, sample_shape, lambda trace: jnp.concatenate([u.ravel() for u in _latents(trace).values()])
        )

    @over_stack("event_shape")
    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> jax.Array:
        """Joint log-density of the sites, with that of the transforms: shape `batch` for values `batch + (d,)`."""
        return jnp.vectorize(self.law._log_density, signature="(d)->()")(value)


class _Replay(eqx.Module):
    """What a program makes of its latents: the value of its site."""

    law: Program

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.law._values(z)[self.law.site]


class _Reached(Exception):  # no error
    """The site has its value: nothing after it is run."""


class _UpTo(Messenger):
    """A program that ends where a site has got its value."""

    def __init__(self, fn, site):
        super().__init__(fn)
        self.site = site

    def __call__(self, *args, **kwargs):
        with contextlib.suppress(_Reached):
            super().__call__(*args, **kwargs)

    def postprocess_message(self, msg):
        if msg["type"] in ("sample", "deterministic") and msg["name"] == self.site:
            raise _Reached


class _Kept(Messenger):
    """Keeps the value of a site."""

    value: Any = None

    def __init__(self, fn=None, *, site):
        super().__init__(fn)
        self.site = site

    def postprocess_message(self, msg):
        if msg["type"] in ("sample", "deterministic") and msg["name"] == self.site:
            self.value = msg["value"]


class _Params(Messenger):
    """A program at given unconstrained values of its `param` sites."""

    def __init__(self, fn, free):
        super().__init__(fn)
        self.free = free

    def process_message(self, msg):
        if msg["type"] == "param" and msg["name"] in self.free:
            msg["value"] = _moved({**msg, "value": self.free[msg["name"]]})


def _moved(msg, inverse=False):
    """The value of a `param` site, between its constraint and the unconstrained space."""
    transform = biject_to(msg["kwargs"].get("constraint") or constraints.real)
    value = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), msg["value"])
    return transform.inv(value) if inverse else transform(value)


def _described(msg):
    if msg["type"] == "plate":
        size, subsample_size = msg["args"]
        return Site(msg["name"], is_plate=True, is_subsample=subsample_size is not None and subsample_size < size)
    fn = msg["fn"]
    has_rsample = not fn.is_discrete and (fn.has_rsample or isinstance(_innermost(fn), _IMPLICIT))
    return Site(msg["name"], msg["is_observed"], is_discrete=fn.is_discrete, has_rsample=has_rsample)


def _innermost(fn):
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _latents(trace):
    """Unconstrained values of the sample sites of a trace."""
    return {
        name: jnp.asarray(biject_to(msg["fn"].support).inv(msg["value"]))
        for name, msg in trace.items()
        if msg["type"] == "sample"
    }

"""A program's draws at a site, as the base of a GEBM."""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to, transform_to
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gebm import programs
from gebm.networks import shape_of
from gebm.programs import Site, check_arguments, check_sites, no_density, slow_draws
from gebm.tilting import plate_depth
from gebm.validation import flag, optional
from pyro_gebm.base import Decomposable, is_discrete, support_of, without_validation
from pyro_gebm.callables import Generator, Shape, quietly
from pyro_gebm.effects import alone

__all__ = ["Program", "ProgramLatents"]

#: Draws with which it is seen whether a program can make many at once.
TRIAL = 3


class Program(Decomposable, dist.TorchDistribution):
    r"""The law of a program's value at one of its sites, as a base for `KALE`, `GEBM` and `kale_test`.

    What the program does up to the site is the base. Its `param` sites there, with those of networks (`pyro.module`,
    `PyroModule`), are what KALE trains, in place, by the gradient of reparametrised draws. Its sample sites there, on
    the unconstrained space and in one vector, are the latent of a GEBM over it, with their joint density as the latent
    prior. With discrete sites it is a base for the energy alone.

    Args:
        model: a Pyro program.
        site: name of a sample site that is not observed, or of a deterministic one. Its value, with the axes of all
            plates around it, is one event.
        args: arguments of the model.
        kwargs: keyword arguments of the model.

    Shapes: `batch_shape` is (); `event_shape` is the shape of the site's value.

    Raises:
        TypeError: if the model cannot be called, or the site is not a name.
        ValueError: if there is no such site, its values are not floating-point numbers, it or a site before it is
            observed, or a plate subsamples.

    Warns:
        UserWarning: if the program gives other values with a plate around it: draws are then made one at a time.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        ...     mean = pyro.sample("mean", dist.Normal(0.0, scale))
        ...     with pyro.plate("rows", 3):
        ...         pyro.sample("x", dist.Normal(mean, 1.0))
        >>> base = Program(model, "x")
        >>> base, tuple(base.sample((5,)).shape), float(base.params["scale"])
        (Program(site: x, event_shape: (3,), latents: mean, x), (5, 3), 2.0)
    """

    arg_constraints = {}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # as in PyTorch

    def __init__(
        self,
        model: Callable[..., Any],
        site: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        validate_args: bool | None = None,
    ):
        optional(flag)("validate_args", validate_args)
        self._model, self.site, self._args, self._kwargs = check_arguments(model, site, args, kwargs)
        self._constraints: dict[str, Any] = {}
        self._sources: dict[str, torch.Tensor] = {}
        self._free = torch.nn.Module()
        with quietly():
            trace = self._trace()
        nodes = {name: node for name, node in trace.items() if node["type"] == "sample"}
        self._sites = tuple(_described(name, node) for name, node in nodes.items())
        check_sites(self._sites, site, site in nodes)
        value = nodes[site]["value"]
        if not value.is_floating_point():
            raise ValueError(f"Expected floating-point values at site '{site}'; got {value.dtype}.")
        self._adopt({name: node for name, node in trace.items() if node["type"] == "param"})
        super().__init__(torch.Size(), value.shape, validate_args=validate_args)
        drawn = _drawn(nodes)
        self._is_plated = plate_depth(nodes[site]["cond_indep_stack"]) > 0
        self._shapes = {name: tuple(node["value"].shape) for name, node in drawn.items()}
        self._sizes = {} if self.discrete else {n: tuple(_unconstrained(node).shape) for n, node in drawn.items()}
        self._depth = max((len(node["fn"].batch_shape) for node in drawn.values()), default=0)
        reason = self._why_not_parallel()
        self._is_parallel = reason is None
        if reason is not None:
            warnings.warn(slow_draws(site, reason), UserWarning, stacklevel=2)

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the discrete sites; with some, there is no latent."""
        return tuple(s.name for s in self._sites if s.is_discrete)

    @property
    def params(self) -> dict[str, torch.Tensor]:
        """Values of the program's `param` sites."""
        return {name: value.detach().clone() for name, value in self._values().items()}

    @property
    def program(self) -> Callable[[], Any]:
        """The whole program, at these parameters and without arguments, to `tilt` at `event_site` or to run."""

        def model():
            kept = _Kept(self.site)
            with self._at_parameters(), kept:
                out = self._model(*self._args, **self._kwargs)
            if self.event_site != self.site:
                pyro.deterministic(self.event_site, kept.value)
            return out

        return model

    @property
    def event_site(self) -> str:
        """Where `program` has a whole event: the site, or for one in plates a deterministic site `<site>_event`."""
        return f"{self.site}_event" if self._is_plated else self.site

    @property
    def has_rsample(self) -> bool:
        return all(s.has_rsample for s in self._sites)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """Draw the value of the site, detached: tensor of shape `sample_shape + event_shape`."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """As `sample`, with gradients to the parameters."""
        shape = torch.Size(shape_of("sample_shape", sample_shape, minimum=0))
        draws = self._draws(math.prod(shape), _value, {self.site: tuple(self.event_shape)})
        return draws[self.site].reshape(shape + self.event_shape)

    def constrain(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values of the program's sites, by name, at latents.

        Args:
            z: shape `batch + (d,)`, such as draws of `gebm.latent`.

        Returns:
            Tensors of shape `batch + ...`.
        """
        values = self._at(z.reshape(-1, z.shape[-1]))[1]
        return {name: value.reshape(z.shape[:-1] + value.shape[1:]) for name, value in values.items()}

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Not defined: it is an integral over the program's other sites.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(no_density(self.site, self.discrete))

    def __repr__(self) -> str:
        latents = ", ".join(s.name for s in self._sites if not s.is_plate)
        return f"Program(site: {self.site}, event_shape: {tuple(self.event_shape)}, latents: {latents})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        """A copy with parameters of its own, which networks that the program encloses use in the place of theirs."""
        new = copy.copy(self)
        new._free = copy.deepcopy(self._free, memo)
        new._model = copy.deepcopy(self._model, memo)
        return new

    def decomposed(self) -> tuple[torch.distributions.Distribution, Generator] | None:
        """`ProgramLatents` and what the program makes of them; None with discrete sites."""
        return None if self.discrete else (ProgramLatents(self), _Replay(self))

    def trained_part(self) -> torch.nn.Module | None:
        """A module of the unconstrained values of the `param` sites."""
        return self._free if self._constraints else None

    def check_trainable(self) -> None:
        """Refuse a program whose draws have no gradient."""
        programs.check_differentiable(self._sites, self.site)

    def _adopt(self, nodes):
        """Make the parameters of the program those of this base, and of the param store."""
        store = pyro.get_param_store()
        free, known = dict(store.named_parameters()), store.get_state()["constraints"]
        for name, node in nodes.items():
            given = node["args"][1] if len(node["args"]) > 1 else None
            own = given if "$$$" in name and isinstance(given, torch.nn.Parameter) else free[name]
            if not isinstance(own, torch.nn.Parameter):
                own = torch.nn.Parameter(own.detach())
            self._constraints[name] = known[name]
            self._sources[name] = own
            *path, last = _path(name)
            module = self._free
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, own)
            store.set_state({"params": {name: own}, "constraints": {name: self._constraints[name]}})

    def _own(self):
        """The unconstrained parameters by site."""
        return {name: self._free.get_parameter(".".join(_path(name))) for name in self._constraints}

    def _values(self):
        return {name: transform_to(self._constraints[name])(own) for name, own in self._own().items()}

    @contextlib.contextmanager
    def _at_parameters(self):
        """A context in which the program, and its networks, have the parameters of this base."""
        own = {id(self._sources[name]): value for name, value in self._own().items()}
        with _Params(self._values()), _replaced(own), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* was not registered in the param store", UserWarning)  # of a copy
            yield

    def _run(self):
        """Run the program up to its site."""
        with self._at_parameters(), contextlib.suppress(_Reached), _UpTo(self.site):
            self._model(*self._args, **self._kwargs)

    def _trace(self, make_handler: Callable[[], Any] = contextlib.nullcontext, validate: bool = True) -> dict[str, Any]:
        with alone(validate), poutine.trace() as trace, make_handler():  # a plate is drawn when it is made
            self._run()
        return trace.trace.nodes

    def _draws(self, num, of_node, shapes):
        """A tensor of every site, with the draws as its first axis."""
        if num == 0:
            return {name: draw[:0] for name, draw in self._draws(1, of_node, shapes).items()}
        if self._is_parallel:
            nodes = self._together(num)
            return {name: _rows(of_node(nodes[name]), shape, num) for name, shape in shapes.items()}
        draws = [{name: of_node(nodes[name]) for name in shapes} for nodes in (self._trace() for _ in range(num))]
        return {name: torch.stack([draw[name] for draw in draws]) for name in shapes}

    def _together(self, num):
        return self._trace(lambda: pyro.plate("_draws", num, dim=-1 - self._depth))

    def _why_not_parallel(self):
        """Run it with a plate around it, and each draw of that alone: None if both agree."""
        try:
            with quietly():
                nodes = self._together(TRIAL)
                rows = {name: _rows(nodes[name]["value"], shape, TRIAL) for name, shape in self._shapes.items()}
                together = torch.stack([_log_prob(node).reshape(TRIAL, -1).sum(1) for node in _drawn(nodes).values()])
                value = _rows(nodes[self.site]["value"], tuple(self.event_shape), TRIAL)
                for i in range(TRIAL):
                    fixed = _Fixed({name: row[i] for name, row in rows.items()})
                    alone = self._trace(lambda fixed=fixed: fixed)
                    density = sum(_log_prob(node).sum() for node in _drawn(alone).values())
                    if not (_close(density, together.sum(0)[i]) and _close(alone[self.site]["value"], value[i])):
                        return "gives other values"
        except Exception as error:
            return f"raises {type(error).__name__}: {str(error).splitlines()[0]}"
        return None

    def _split(self, z):
        parts = z.split([math.prod(shape) for shape in self._sizes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self._sizes.items(), parts)}

    def _at(self, z):
        """Log-density of the sites at latents `(N, d)`, shape `(N,)`, and their values."""

        def of_one(z):
            handler = _At(self._split(z))
            nodes = self._trace(lambda: handler, validate=False)
            total = handler.log_det + sum(_log_prob(node).sum() for node in _drawn(nodes).values())
            return total, {s.name: nodes[s.name]["value"] for s in self._sites if not s.is_plate}

        return torch.func.vmap(of_one, randomness="different")(z)


class ProgramLatents(dist.TorchDistribution):
    r"""The sample sites of a program up to a site, unconstrained and in one vector: the latent prior of `Program`.

    Args:
        program: a `Program` without discrete sites.

    Shapes: `batch_shape` is (); `event_shape` is `(d,)`, the sites in the order of the program.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> law = ProgramLatents(Program(lambda: pyro.sample("x", dist.LogNormal(0.0, 1.0)), "x"))
        >>> round(float(law.log_prob(torch.zeros(1))), 4)  # N(0, 1) at 0: x = exp(z)
        -0.9189
    """

    arg_constraints = {}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # as in PyTorch
    support = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, program: Program, *, validate_args: bool | None = None):
        self.law = program
        size = sum(math.prod(shape) for shape in program._sizes.values())
        super().__init__(torch.Size(), torch.Size([size]), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return self.law.has_rsample

    def sample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """Draw latents, detached: tensor of shape `sample_shape + (d,)`."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """As `sample`, with gradients to the parameters."""
        shape = torch.Size(shape_of("sample_shape", sample_shape, minimum=0))
        parts = self.law._draws(math.prod(shape), _unconstrained, self.law._sizes).values()
        return torch.cat([part.reshape(len(part), -1) for part in parts], 1).reshape(shape + self.event_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Joint log-density of the sites, with that of the transforms: shape `batch` for values `batch + (d,)`."""
        if self._validate_args:
            self._validate_sample(value)
        return self.law._at(value.reshape(-1, value.shape[-1]))[0].reshape(value.shape[:-1])


class _Replay:
    """What a program makes of its latents: the value of its site."""

    def __init__(self, program):
        self.law = program

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        return self.law._at(z)[1][self.law.site]


class _Reached(Exception):  # no error
    """The site has its value: nothing after it is run."""


class _UpTo(Messenger):
    """A program that ends where a site has got its value."""

    def __init__(self, site):
        super().__init__()
        self.site = site

    def _pyro_post_sample(self, msg):
        if msg["name"] == self.site:
            raise _Reached


class _Kept(Messenger):
    """Keeps the value of a site."""

    value: Any = None

    def __init__(self, site):
        super().__init__()
        self.site = site

    def _pyro_post_sample(self, msg):
        if msg["name"] == self.site:
            self.value = msg["value"]


class _Params(Messenger):
    """A program at given values of its `param` sites."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_param(self, msg):
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class _Fixed(Messenger):
    """A program at given values of its sample sites, whose densities count all the same."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg):
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self._value(msg["name"], msg["fn"]), True

    def _value(self, name, fn):
        return self.values[name]


class _At(_Fixed):
    """A program at given unconstrained values of its sample sites."""

    log_det: Any = 0.0

    def _value(self, name, fn):
        u, transform = self.values[name], biject_to(support_of(fn))
        value = transform(u)
        self.log_det = self.log_det + transform.log_abs_det_jacobian(u, value).sum()
        return value


class _Replaced(TorchFunctionMode):
    """Functions of PyTorch within it take other tensors in the place of some."""

    def __init__(self, new):
        super().__init__()
        self.new = new

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.__name__ != "__get__":  # of an attribute, as `requires_grad`
            args, kwargs = tree_map(lambda x: self.new.get(id(x), x), (args, kwargs))
        return func(*args, **kwargs)


def _replaced(new):
    """A context in which networks use the parameters of this base: in a copy, those that they were made with go."""
    new = {i: value for i, value in new.items() if i != id(value)}
    return _Replaced(new) if new else contextlib.nullcontext()


def _path(name):
    """Where the parameter of a site is in the trained part."""
    return name.replace("$$$", ".").split(".")


def _described(name, node):
    fn = node["fn"]
    if isinstance(fn, _Subsample):
        return Site(name, is_plate=True, is_subsample=fn.subsample_size is not None and fn.subsample_size < fn.size)
    if _is_deterministic(node):
        return Site(name)
    return Site(name, node["is_observed"], is_discrete=is_discrete(fn), has_rsample=fn.has_rsample)


def _is_deterministic(node):
    return bool(node["infer"].get("_deterministic", False))


def _drawn(nodes):
    """The sample sites of a trace, without plates and deterministic ones."""
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample) and not _is_deterministic(node)
    }


def _log_prob(node):
    log_prob = without_validation(node["fn"]).log_prob(node["value"])
    return scale_and_mask(log_prob, node["scale"], node["mask"])


def _unconstrained(node):
    return biject_to(support_of(node["fn"])).inv(node["value"])


def _value(node):
    return node["value"]


def _rows(value, shape, num):
    """A value from many draws with those as its first axis; one that is the same for all is repeated."""
    if value.shape[:1] == (num,) and value.numel() == num * math.prod(shape):
        return value.reshape(num, *shape)
    if tuple(value.shape) == tuple(shape):
        return value.expand(num, *shape)
    raise ValueError(f"a value has shape {tuple(value.shape)} for {num} draws of shape {tuple(shape)}")


def _close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)

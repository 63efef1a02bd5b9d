"""Pyro and NumPyro behind one interface, so that behaviour which both packages share is tested once.

A test that takes the fixture `host` runs in each host that is installed and is skipped in the other:

    def test_a_constant_energy_changes_nothing(host):
        gebm = host.GEBM(host.normal(2), lambda x: 0.0 * x.sum(-1))
        draws = host.sample(gebm.latent, (4000,))
        cases.assert_moments(host.numpy(draws)[None], np.zeros(2), np.eye(2))

`host.GEBM`, `host.nn`, `host.infer` ... are those of `numpyro_gebm` or `pyro_gebm`; `host.dist`, `host.handlers`,
`host.ppl`, `host.xp` and `host.func` are the host's distributions, effect handlers, the host itself, `jax.numpy` or
`torch`, and `jax` or `torch.func` (`vmap`, `jacrev`).

A function written with trailing axes (`(x**2).sum(-1)`, `x[..., 0]`, `z @ W.T`) is right for one example, which
NumPyro gives it, and for a batch, which Pyro gives it. What only one host has is tested in `tests/<host>_gebm/`.
"""

import contextlib
import functools
import importlib
import importlib.util
import warnings

import cases
import numpy as np

__all__ = ["HOSTS", "get", "missing"]


class Host:
    """What the two hosts do alike. Both are in float64, as everywhere in the tests."""

    needs, real = (), np.float64

    def __init__(self):
        self.package = importlib.import_module(f"{self.name}_gebm")
        self.ppl = importlib.import_module(self.name)
        self.dist = importlib.import_module(f"{self.name}.distributions")

    def __getattr__(self, name):
        return getattr(self.package, name)

    def __repr__(self):
        return self.name

    def module(self, name):
        """A module of the package, as `infer.ladder.smc`, whose constants a test wants to change."""
        return importlib.import_module(f"{self.name}_gebm.{name}")

    def normal(self, dim, loc=0.0, scale=1.0):
        """N(loc, scale² I) in `dim` dimensions."""
        return self.dist.Normal(*(self.array(np.full(dim, x, self.real)) for x in (loc, scale))).to_event(1)

    def linear_gaussian(self, beta, **kwargs):
        """The GEBM of `cases.linear_gaussian`."""
        W, b, c, M = (self.array(a) for a in vars(cases.linear_gaussian()).values())
        base = self.Pushforward(self.normal(2), lambda z: z @ W.T + b)
        return self.GEBM(
            base, lambda x: 0.5 * ((x - c) @ M * (x - c)).sum(-1), inverse_temperature=beta, **kwargs
        )  # fmt: skip

    def random_flow(self, dim=3, num_couplings=2, hidden=(5, 4), seed=0, scale=0.3):
        """A Real NVP whose parameters are all random: as made it is the identity."""
        flow = self.call(self.flows.real_nvp, dim, num_couplings, hidden)
        rng = np.random.default_rng(seed)
        return self.with_parameters(flow, [scale * rng.normal(size=p.shape) for p in self.parameters(flow)])

    def run(self, kernel, *args, **kwargs):
        """Draws of `mcmc`: NumPy arrays of shape (chain, draw, ...) by site."""
        return self.draws(self.mcmc(kernel, *args, **kwargs))

    def draws(self, mcmc):
        """Draws of a run, NumPy arrays of shape (chain, draw, ...) by site."""
        return {name: self.numpy(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}


class NumPyro(Host):
    """JAX: random keys, functions of one example, compiled programs."""

    name, needs = "numpyro", ("jax", "numpyro", "equinox", "optax")

    def __init__(self):
        super().__init__()
        import equinox
        import jax

        self.jax, self.xp, self.jit, self.func = jax, jax.numpy, jax.jit, jax
        self.handlers = importlib.import_module("numpyro.handlers")
        self._apply = equinox.filter_jit(self.module("callables").over_batch)
        self._slope = equinox.filter_jit(lambda f, x, dim: jax.grad(lambda x: self._apply(f, x, dim).sum())(x))
        self._grad = functools.cache(lambda f, num: jax.jit(jax.value_and_grad(f, argnums=tuple(range(num)))))

    def float32(self):
        """A context in which the host works in its own precision, not in that of the tests."""
        return self.jax.enable_x64(False)

    def array(self, x, dtype=None):
        """An array; whole numbers and float64 stay what they are."""
        return self.xp.asarray(x, dtype)

    def numpy(self, x):
        """As a NumPy array."""
        return np.asarray(x)

    def key(self, seed):
        """The first arguments of what takes a key there: `fn(*host.key(0), x)`; in Pyro none, and the seed is set."""
        return (self.jax.random.key(seed),)

    def sample(self, distribution, shape=(), seed=0):
        """Draws of a distribution."""
        return distribution.sample(*self.key(seed), shape)

    def call(self, fn, *args, seed=0, **kwargs):
        """Call what takes `rng_key=` in NumPyro, and Pyro's global state of random numbers in Pyro."""
        return fn(*args, rng_key=self.jax.random.key(seed), **kwargs)

    def apply(self, fn, x, event_dim=1):
        """A network, an energy or a generator on a batch of examples; compiled once for all networks of a structure."""
        return self._apply(fn, self.array(x), event_dim)

    def slope(self, energy, x, event_dim=1):
        """Gradient of an energy at each of a batch of examples, in NumPy."""
        return self.numpy(self._slope(energy, self.array(x), event_dim))

    def seeded(self, model, seed=0):
        """A model that can be called without a key."""
        return self.handlers.seed(model, self.jax.random.key(seed))

    def grad(self, fn, *args):
        """Value of a scalar function and its gradients by all of its arguments, in NumPy; compiled once a function."""
        return self.jax.device_get(self._grad(fn, len(args))(*map(self.array, args)))

    def network(self, fn, *parameters):
        """The network `x -> fn(*parameters, x)`."""
        return self.nn.Applied(_of_one_tuple(fn), tuple(map(self.array, parameters)))

    def parameters(self, network):
        """Parameters of a network or a base, NumPy arrays in the order of its definition."""
        if isinstance(network, self.dist.Distribution):
            network = self.module("base").trained_part(network)
        return [self.numpy(leaf) for leaf in self.jax.tree.leaves(network) if isinstance(leaf, self.jax.Array)]

    def with_parameters(self, network, parameters):
        """A network or a base with other parameters; Pyro's is changed in place."""
        if isinstance(network, self.dist.Distribution):
            base = self.module("base")
            part = self.with_parameters(base.trained_part(network), parameters)
            return base.with_trained_part(network, part)
        leaves, structure = self.jax.tree.flatten(network)
        new = iter(parameters)
        leaves = [self.array(next(new)) if isinstance(leaf, self.jax.Array) else leaf for leaf in leaves]
        return self.jax.tree.unflatten(structure, leaves)

    def adam(self, rate, b1=0.9, decay_steps=None):
        """Adam for KALE; with `decay_steps` its rate falls to 0 by a cosine."""
        import optax

        return optax.adam(optax.cosine_decay_schedule(rate, decay_steps) if decay_steps else rate, b1=b1)

    def sgd(self, rate):
        """Gradient descent for KALE."""
        import optax

        return optax.sgd(rate)

    def train(self, kale, num_steps, data, seed=0, after=None, **kwargs):
        """`KALE.run` without a progress bar, perhaps going on after a result; `evaluate` takes what it returns."""
        kwargs = {"progress_bar": False, "init_state": after and after.state} | kwargs
        return kale.run(None if after else self.jax.random.key(seed), num_steps, data, **kwargs)

    def leaves(self, state):
        """The arrays of a state of training, in NumPy and in one order."""
        state = state._replace(rng_key=self.jax.random.key_data(state.rng_key)) if hasattr(state, "rng_key") else state
        return [np.asarray(leaf) for leaf in self.jax.tree.leaves(state)]

    def steps(self, kale, after=None, seed=0):
        """A training taken step by step, from its start or from a result."""
        return _NumPyroSteps(self, kale, after, seed)

    def evaluate(self, kale, result, data):
        """KALE on data after `train`."""
        return float(kale.evaluate(result.state, data))

    def nuts(self, model):
        """The host's NUTS from draws of the prior."""
        return self.ppl.infer.NUTS(model, init_strategy=self.infer.init_to_prior)

    def mcmc(self, kernel, num_warmup, num_samples, num_chains=1, *args, seed=0, start=None, stock=False):
        """A finished run of the host's MCMC, chains together or (`stock`) in turn; `start` has (chain, ...) by site."""
        mcmc = self._mcmc(kernel, num_warmup, num_samples, num_chains, "sequential" if stock else "vectorized")
        start = start and {name: self.array(x if num_chains > 1 else x[0]) for name, x in start.items()}
        mcmc.run(self.jax.random.key(seed), *args, init_params=start)
        return mcmc

    def _mcmc(self, kernel, num_warmup, num_samples, num_chains, chain_method="vectorized"):
        settings = {"num_chains": num_chains, "chain_method": chain_method, "progress_bar": False}
        return self.ppl.infer.MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, **settings)

    def stream(self, kernel, path, num_warmup, num_samples, num_chains=1, seed=0, **kwargs):
        """Draws of `stream_draws`."""
        mcmc, key = self._mcmc(kernel, num_warmup, num_samples, num_chains), self.jax.random.key(seed)
        return self.infer.stream_draws(mcmc, path, rng_key=key, **{"progress_bar": False} | kwargs)


class Pyro(Host):
    """PyTorch: global random numbers, functions of a batch, modules."""

    name, needs = "pyro", ("torch", "pyro")

    def __init__(self):
        super().__init__()
        import torch

        self.torch, self.xp, self.func = torch, torch, torch.func
        self.handlers = importlib.import_module("pyro.poutine")

    def jit(self, fn):
        """Nothing to compile."""
        return fn

    @contextlib.contextmanager
    def float32(self):
        """A context in which the host works in its own precision, not in that of the tests."""
        default = self.torch.get_default_dtype()
        self.torch.set_default_dtype(self.torch.float32)
        self.real = np.float32
        try:
            yield
        finally:
            self.torch.set_default_dtype(default)
            del self.real

    def array(self, x, dtype=None):
        """A tensor; whole numbers and float64 stay what they are."""
        return self.torch.as_tensor(x, dtype=dtype and getattr(self.torch, dtype))

    def numpy(self, x):
        """As a NumPy array."""
        return x.detach().numpy() if isinstance(x, self.torch.Tensor) else np.asarray(x)

    def key(self, seed):
        """The first arguments of what takes a key there: `fn(*host.key(0), x)`; in Pyro none, and the seed is set."""
        self.ppl.set_rng_seed(seed)
        return ()

    def sample(self, distribution, shape=(), seed=0):
        """Draws of a distribution."""
        return distribution.sample(*self.key(seed), shape)

    def call(self, fn, *args, seed=0, **kwargs):
        """Call what takes `rng_key=` in NumPyro, and Pyro's global state of random numbers in Pyro."""
        self.ppl.set_rng_seed(seed)
        return fn(*args, **kwargs)

    def apply(self, fn, x, event_dim=1):
        """A network, an energy or a generator on a batch of examples."""
        return self.module("callables").over_batch(fn, self.array(x), event_dim)

    def slope(self, energy, x, event_dim=1):
        """Gradient of an energy at each of a batch of examples, in NumPy."""
        return self.grad(lambda x: self.apply(energy, x, event_dim).sum(), x)[1][0]

    def seeded(self, model, seed=0):
        """A model that can be called without a key."""
        return lambda *args: self.call(model, *args, seed=seed)

    def grad(self, fn, *args):
        """Value of a scalar function and its gradients by all of its arguments, in NumPy."""
        args = [self.array(x).clone().requires_grad_(True) for x in args]
        value = fn(*args)
        return self.numpy(value), tuple(map(self.numpy, self.torch.autograd.grad(value, args)))

    def network(self, fn, *parameters):
        """The network `x -> fn(*parameters, x)`."""
        network = _function_module()(fn)
        for parameter in parameters:
            network.arrays.append(self.torch.nn.Parameter(self.array(parameter).clone()))
        return network

    def _module(self, network):
        module = network if isinstance(network, self.torch.nn.Module) else self.module("base").trained_part(network)
        return self.torch.nn.Module() if module is None else module

    def parameters(self, network):
        """Parameters of a network or a base, NumPy arrays in the order of its definition."""
        return [self.numpy(parameter).copy() for parameter in self._module(network).parameters()]

    def with_parameters(self, network, parameters):
        """A network or a base with other parameters; Pyro's is changed in place."""
        with self.torch.no_grad():
            for old, new in zip(self._module(network).parameters(), parameters, strict=True):
                old.copy_(self.array(new))
        return network

    def adam(self, rate, b1=0.9, decay_steps=None):
        """Adam for KALE; with `decay_steps` its rate falls to 0 by a cosine."""
        optim = self.torch.optim

        def factory(parameters):
            adam = optim.Adam(parameters, rate, betas=(b1, 0.999))
            return (adam, optim.lr_scheduler.CosineAnnealingLR(adam, decay_steps)) if decay_steps else adam

        return factory

    def sgd(self, rate):
        """Gradient descent for KALE."""
        return lambda parameters: self.torch.optim.SGD(parameters, rate)

    def train(self, kale, num_steps, data, seed=0, after=None, **kwargs):
        """`KALE.run` without a progress bar, perhaps going on after a result; `evaluate` takes what it returns."""
        if after is None:
            self.ppl.set_rng_seed(seed)
        return kale.run(num_steps, data, **{"progress_bar": False} | kwargs)

    def leaves(self, state):
        """The arrays of a state of training, in NumPy and in one order."""
        if isinstance(state, (dict, list, tuple)):
            values = state.values() if isinstance(state, dict) else state
            return [leaf for value in values for leaf in self.leaves(value)]
        return [] if state is None else [np.array(self.numpy(state))]

    def steps(self, kale, after=None, seed=0):
        """A training taken step by step, from its start or from a result."""
        self.ppl.set_rng_seed(seed)
        return _PyroSteps(self, kale)

    def evaluate(self, kale, result, data):
        """KALE on data after `train`."""
        return float(kale.evaluate(data))

    def nuts(self, model):
        """The host's NUTS from draws of the prior."""
        return self.ppl.infer.NUTS(model, init_strategy=self.infer.init_to_prior, max_plate_nesting=0)

    def mcmc(self, kernel, num_warmup, num_samples, num_chains=1, *args, seed=0, start=None, stock=False):
        """A finished run of `VectorizedMCMC`, or (`stock`, Pyro's kernels) MCMC; `start` has (chain, ...) by site."""
        self.ppl.set_rng_seed(seed)
        stock = stock or isinstance(kernel, self.ppl.infer.HMC)
        MCMC = self.ppl.infer.MCMC if stock else self.infer.VectorizedMCMC
        start = start and {n: self.array(x if num_chains > 1 or not stock else x[0]) for n, x in start.items()}
        settings = {"num_chains": num_chains, "initial_params": start, "disable_progbar": True}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "num_chains=.* is more than available_cpu", UserWarning)
            mcmc = MCMC(kernel, num_samples, num_warmup, **settings)
            mcmc.run(*args)
        return mcmc

    def stream(self, kernel, path, num_warmup, num_samples, num_chains=1, seed=0, **kwargs):
        """Draws of `stream_draws`."""
        self.ppl.set_rng_seed(seed)
        mcmc = self.infer.VectorizedMCMC(kernel, num_samples, num_warmup, num_chains)
        return self.infer.stream_draws(mcmc, path, **{"progress_bar": False} | kwargs)


class _NumPyroSteps:
    """A training: `step(batch)` takes one; attributes are counters, the log-partition, and parts as lists of arrays."""

    def __init__(self, host, kale, after, seed):
        self._host, self._kale = host, kale
        start = np.zeros((1, *kale.base.event_shape))
        self.state = kale.init(host.jax.random.key(seed), start) if after is None else after.state

    def step(self, batch):
        """Losses of a step, on data in any form."""
        self.state, losses = self._kale.update(self.state, batch)
        return self._host.jax.tree.map(np.asarray, losses)

    def set(self, **values):
        """Change counters or the log-partition."""
        self.state = self.state._replace(**{_NUMBERS[name][0]: self._host.array(v) for name, v in values.items()})

    def __getattr__(self, name):
        if name in _NUMBERS:
            return np.asarray(getattr(self.state, _NUMBERS[name][0]))
        return self._host.leaves(getattr(self.state, name))


class _PyroSteps:
    """A training: `step(batch)` takes one; attributes are counters, the log-partition, and parts as lists of arrays."""

    def __init__(self, host, kale):
        self._host, self._kale = host, kale

    @property
    def state(self):
        return self._kale.state_dict()

    def step(self, batch):
        """Losses of a step, on data in any form."""
        losses = self._kale.step(batch)
        return type(losses)(*(self._host.numpy(value) for value in losses))

    def set(self, **values):
        """Change counters or the log-partition."""
        for name, value in values.items():
            setattr(self._kale, _NUMBERS[name][1], self._host.array(value) if name == "log_partition" else value)

    def __getattr__(self, name):
        if name in _NUMBERS:
            return self._host.numpy(getattr(self._kale, _NUMBERS[name][1]))
        parts = {"base": self._kale.base, "energy": self._kale.guide.energy}
        return self._host.parameters(parts[name]) if name in parts else self._host.leaves(self.state[name])


#: Numbers of a training, and what `KALEState` and Pyro's `KALE` call them.
_NUMBERS = {
    "num_steps": ("step", "num_steps_taken"),
    "base_steps": ("base_step", "base_steps_taken"),
    "skipped": ("skipped", "num_skipped"),
    "log_partition": ("log_partition", "log_partition"),
}


@functools.cache  # so that new parameters compile nothing
def _of_one_tuple(fn):
    return lambda parameters, x: fn(*parameters, x)


@functools.cache
def _function_module():
    import torch

    class Function(torch.nn.Module):
        def __init__(self, fn):
            super().__init__()
            self.fn, self.arrays = fn, torch.nn.ParameterList()

        def forward(self, x):
            return self.fn(*self.arrays, x)

    return Function


def compiled_once(build):
    """For `build(host, ...)`, which makes a training: NumPyro's has no state, so that one is enough for all tests."""
    cached = functools.cache(build)
    return functools.wraps(build)(
        lambda host, *args, **kwargs: (cached if host.name == "numpyro" else build)(host, *args, **kwargs)
    )


HOSTS = {host.name: host for host in (NumPyro, Pyro)}


def missing(name):
    """The packages that a host needs and that are not installed."""
    return [package for package in HOSTS[name].needs if importlib.util.find_spec(package) is None]


@functools.cache
def get(name):
    """The host of that name; one object, so that it can be the key of a cache."""
    return HOSTS[name]()

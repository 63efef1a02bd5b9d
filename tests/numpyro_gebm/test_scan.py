"""Distributions inside `numpyro.contrib.control_flow.scan`, and stacks of them from `jax.vmap`."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from marks import slow_unless
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions.batch_util import promote_batch_shape, vmap_over
from numpyro.infer.util import initialize_model

from numpyro_gebm import GEBM, LatentReparam, Pushforward, flows, infer, nn

KEY = jax.random.key(0)


class Well(eqx.Module):
    """An energy with an array."""

    center: jax.Array

    def __call__(self, x):
        return 0.5 * ((x - self.center) ** 2).sum()


def normal(loc, batch=()):
    return dist.Normal(loc, 1.0).expand([*batch, 2]).to_event(1)


FLOW = jax.tree.map(lambda x: x + 0.1, flows.real_nvp(2, hidden=(2,), rng_key=KEY))
MLP = nn.MLP((2,), (3,), hidden=(2,), rng_key=KEY)

#: From a carried scalar to a distribution.
MAKERS = {
    "host": normal,
    "latent": lambda c: GEBM(normal(c), lambda x: 0.5 * (x**2).sum()).latent,
    "energy": lambda c: GEBM(normal(0.0), Well(jnp.stack([c, 2.0]))),
    "beta": lambda c: GEBM(normal(0.0), Well(jnp.ones(2)), inverse_temperature=c + 1, log_partition=c / 2).latent,
    "pushforward": lambda c: GEBM(Pushforward(normal(c), MLP), Well(jnp.ones(3))).latent,
    "bounded": lambda c: GEBM(dist.Uniform(-1.0, c + 1.0).expand([2]).to_event(1), Well(jnp.ones(2))).latent,
    "flow": lambda c: flows.Flow(normal(c), FLOW.transforms),
    "gebm of a flow": lambda c: GEBM(flows.Flow(normal(c), FLOW.transforms), Well(jnp.ones(2))),
    "batch": lambda c: GEBM(normal(c, (3,)), Well(jnp.ones(2)), inverse_temperature=jnp.arange(3.0)).latent,
    "event": lambda c: MAKERS["batch"](c).to_event(1),
    "masked": lambda c: MAKERS["batch"](c).mask(jnp.array([True, False, True])),
    "expanded": lambda c: GEBM(normal(c, (1,)), Well(jnp.ones(2))).expand([3, 2]),
}
PLATED = {f"plates of {name}": MAKERS[name] for name in ("latent", "pushforward", "bounded", "flow")}


def steps_of(make):
    """Log density of a value of each step, under the distribution that its step makes."""
    return jax.vmap(lambda c, z: make(c).log_prob(z).sum())


def chain(num_steps):
    """A model with one site of each kind in every step, made with 0, 1, 2, ..."""

    def step(c, _):
        for name, make in MAKERS.items():
            numpyro.sample(name, make(c))
        with numpyro.plate("columns", 3), numpyro.plate("rows", 2):
            for name, make in PLATED.items():
                numpyro.sample(name, make(c))
        return c + 1.0, None

    scan(step, 0.0, None, length=num_steps)


@pytest.mark.parametrize("num_steps", slow_unless([2, 3, 4], 3), ids="{} steps".format)
def test_the_density_in_a_scan_is_the_sum_over_its_steps(num_steps):
    """Also where the number of steps is the length of an event (2), or of a plate (3)."""
    shapes = {name: make(0.0).shape() for name, make in MAKERS.items()}
    shapes |= {name: (2, 3, *make(0.0).shape()) for name, make in PLATED.items()}
    values = {n: jax.random.uniform(KEY, (num_steps, *shape), minval=-1.0) for n, shape in shapes.items()}

    @jax.jit
    def log_probs(values):
        model = handlers.substitute(handlers.seed(chain, 0), values)
        sites = handlers.trace(model).get_trace(num_steps)
        got = {name: sites[name]["fn"].log_prob(sites[name]["value"]).sum() for name in values}
        steps, makers = jnp.arange(float(num_steps)), {**MAKERS, **PLATED}
        want = {name: steps_of(makers[name])(steps, z).sum() for name, z in values.items()}
        return got, want

    got, want = log_probs(values)
    for name in values:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-12, err_msg=name)


def of_steps(make):
    def step(c, _):
        numpyro.sample("z", make(c))
        return c + 1.0, None

    return lambda: scan(step, 0.0, None, length=3)


@pytest.mark.parametrize("prior", [normal, lambda c: dist.Uniform(0.0, c + 1.0)], ids=["real", "bounded by a carry"])
def test_the_potential_of_a_scan_is_that_of_the_host(prior):
    """With a constant energy, where the start of a chain, its support and its Jacobian are those of the prior."""

    def potential_and_draws(make):
        model = of_steps(make)
        start, potential, constrain, _ = initialize_model(
            KEY, model, init_strategy=infer.init_to_prior, dynamic_args=True, validate_grad=False
        )
        u = {"z": start.z["z"] + 0.3}
        return start.z, potential()(u), constrain()(u)

    want = potential_and_draws(prior)
    got = potential_and_draws(lambda c: GEBM(prior(c), lambda x: 0.0 * x.sum()).latent)
    jax.tree.map(np.testing.assert_allclose, got, want)


def test_a_site_of_a_scan_is_reparametrised_inside_its_step():
    def step(c, _):
        with handlers.reparam(config={"x": LatentReparam()}):
            x = numpyro.sample("x", GEBM(Pushforward(normal(c), lambda z: 2.0 * z), Well(jnp.zeros(2))))
        return x.sum(), x

    z = jax.random.normal(KEY, (4, 2))
    model = handlers.substitute(handlers.seed(lambda: scan(step, 0.0, None, length=4), 0), {"x_latent": z})
    sites = handlers.trace(model).get_trace()
    np.testing.assert_allclose(sites["x"]["value"], 2.0 * z)
    loc = np.append(0.0, 2.0 * z.sum(1)[:-1])[:, None]
    want = dist.Normal(loc, 1.0).log_prob(z).sum(1) - 2.0 * (z**2).sum(1)
    site = sites["x_latent"]
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), want, rtol=1e-12)


@pytest.mark.parametrize("name", ["pushforward", "batch"])
def test_distributions_that_vmap_made(name):
    make, steps = MAKERS[name], jnp.arange(3.0)
    stack = promote_batch_shape(jax.vmap(make)(steps))
    assert stack.batch_shape == (3, *make(0.0).batch_shape)
    assert promote_batch_shape(stack).batch_shape == stack.batch_shape
    assert promote_batch_shape(make(0.0)).batch_shape == make(0.0).batch_shape
    x = jax.random.normal(KEY, (4, *stack.shape()))
    want = jax.jit(lambda x: jnp.stack([make(c).log_prob(x[:, i]) for i, c in enumerate(steps)], 1))(x)
    np.testing.assert_allclose(jax.jit(stack.log_prob)(x), want, rtol=1e-12)
    same = jnp.broadcast_to(x[:, :1], x.shape)
    np.testing.assert_allclose(stack.log_prob(x[:, :1]), stack.log_prob(same), rtol=1e-12)  # a value broadcasts


def test_draws_of_a_stack_are_those_of_its_distributions():
    base = promote_batch_shape(jax.vmap(lambda c: Pushforward(normal(100.0 * c), MLP))(jnp.arange(3.0)))
    draws = base.sample(KEY, (5,))
    assert draws.shape == (5, 3, 3)
    keys = jax.random.split(KEY, 3)
    want = [Pushforward(normal(100.0 * c), MLP).sample(keys[c], (5,)) for c in range(3)]
    np.testing.assert_allclose(draws, jnp.stack(want, 1))


def test_vmap_over_names_the_arguments_of_a_constructor():
    energy = Well(jnp.ones(3))

    def make(loc, beta):
        return GEBM(Pushforward(normal(loc), MLP), energy, inverse_temperature=beta).latent

    one = make(0.0, 1.0)
    prior = one.gebm.latent_prior
    over_loc = copy.copy(prior)
    over_loc.base_dist = copy.copy(prior.base_dist)
    over_loc.base_dist.base_dist = vmap_over(prior.base_dist.base_dist, loc=0)
    axes = vmap_over(
        one,
        gebm=vmap_over(one.gebm, base=vmap_over(one.gebm.base, latent_prior=over_loc), inverse_temperature=0),
    )
    locs, betas, z = jnp.arange(3.0), jnp.arange(1.0, 4.0), jax.random.normal(KEY, (3, 2))
    latents = jax.vmap(make, out_axes=axes)(locs, betas)
    want = [make(loc, beta).log_prob(z[i]) for i, (loc, beta) in enumerate(zip(locs, betas))]
    got = jax.vmap(lambda latent, z: latent.log_prob(z), in_axes=(axes, 0))(latents, z)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(promote_batch_shape(latents).log_prob(z), want, rtol=1e-12)
    assert latents.gebm.energy.center.shape == (3,)  # not mapped, not copied
